# Lets an interface package build against the ROS 2 wheels (`pip install ros-...`), where a virtual
# environment is the ROS prefix. On an ordinary ROS installation it changes nothing.
#
# 1. Put the environment that holds rosidl_cmake at the end of AMENT_PREFIX_PATH and CMAKE_PREFIX_PATH: packages of
#    a colcon workspace, which stand there already, go first.
# 2. The CMake targets exported by the wheels name include directories of the machine that built
#    them. CMake refuses targets with missing directories, so drop those at the end of this directory.

set(Python3_FIND_UNVERSIONED_NAMES FIRST)
find_package(Python3 REQUIRED COMPONENTS Interpreter)
execute_process(
  COMMAND ${Python3_EXECUTABLE} -c
    "import importlib.util as u, pathlib; s = u.find_spec('rosidl_cmake'); print(pathlib.Path(s.origin).resolve().parents[4] if s else '')"
  OUTPUT_VARIABLE _pip_ros_prefix OUTPUT_STRIP_TRAILING_WHITESPACE)

if(_pip_ros_prefix AND EXISTS "${_pip_ros_prefix}/share/rosidl_cmake/cmake")
  foreach(_variable AMENT_PREFIX_PATH CMAKE_PREFIX_PATH)
    if(NOT ":$ENV{${_variable}}:" MATCHES ":${_pip_ros_prefix}:")
      string(REGEX REPLACE "^:" "" _paths "$ENV{${_variable}}:${_pip_ros_prefix}")
      set(ENV{${_variable}} "${_paths}")
    endif()
  endforeach()
endif()

function(_pip_ros_drop_missing_includes)
  get_property(_targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(_target IN LISTS _targets)
    get_target_property(_includes ${_target} INTERFACE_INCLUDE_DIRECTORIES)
    if(_includes)
      set(_present "")
      foreach(_directory IN LISTS _includes)
        if(NOT IS_ABSOLUTE "${_directory}" OR EXISTS "${_directory}")
          list(APPEND _present "${_directory}")
        endif()
      endforeach()
      set_property(TARGET ${_target} PROPERTY INTERFACE_INCLUDE_DIRECTORIES "${_present}")
    endif()
  endforeach()
endfunction()
cmake_language(DEFER CALL _pip_ros_drop_missing_includes)

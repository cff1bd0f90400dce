# Each target sets up what it needs in .venv and is quick when nothing has changed. See docs/install.md.
#
#   make demo                      run the nodes on synthesised totes
#   make demo SOURCE=DIR OUT=DIR   run them on your own images, video, bag or camera
#   make test                      run the tests
#   make setup                     set up everything, with all extras

PYTHON ?= python3
WORKERS ?= 2
MCA := .venv/bin/mca

# Another environment's ROS 2 wheels must not leak into ours.
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE

.PHONY: demo test setup bench doctor lint colcon clean help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

demo:
	@$(PYTHON) scripts/bootstrap demo
	@$(MCA) demo $(if $(SOURCE),--source "$(SOURCE)") $(if $(OUT),--out "$(OUT)") $(ARGS)

test:
	@$(PYTHON) scripts/bootstrap test
	@.venv/bin/python -m pytest -n $(WORKERS) $(ARGS)

setup:
	@$(PYTHON) scripts/bootstrap setup

bench:
	@$(PYTHON) scripts/bootstrap test
	@$(MCA) bench

doctor:
	@$(PYTHON) scripts/bootstrap demo
	@$(MCA) doctor

lint:
	@$(PYTHON) scripts/bootstrap test
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache

# The whole workspace for `ros2 launch` and `ros2 run`; vision_msgs only where ROS lacks it.
colcon:
	@$(PYTHON) scripts/bootstrap colcon

clean:
	rm -rf .venv build dist *.egg-info ros2_ws/build ros2_ws/install ros2_ws/log
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

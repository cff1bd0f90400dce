"""ROS 2 nodes and everything they need. The only folder that imports rclpy."""

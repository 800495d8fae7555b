"""The gRPC edge: async, computing nothing. Only it and `rewardsvc.convert` see protobuf."""

from popart.testing.wire.test_messages import *  # noqa: F403

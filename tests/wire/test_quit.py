from popart.testing.wire.test_quit import *  # noqa: F403

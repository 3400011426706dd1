from popart.testing.wire.test_capabilities import *  # noqa: F403

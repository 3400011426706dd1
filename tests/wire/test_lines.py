from popart.testing.wire.test_lines import *  # noqa: F403

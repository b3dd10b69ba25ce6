"""Several devices on one processor."""


def xla_flags(count: int) -> str:
    """XLA_FLAGS of a process with so many devices.

    XLA ends a process whose devices have not all come to an all-reduce within 40 s, as
    they have not where the machine itself stood still; with these it waits for ten
    minutes.
    """
    return (
        f"--xla_force_host_platform_device_count={count} "
        "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    )

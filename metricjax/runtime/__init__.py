"""Devices and hosts: device mesh, multi-host setup and watchdog, compiled programs.

`mesh` builds the device mesh and moves batches to it, `connection` joins the hosts,
`watchdog` ends all of them when one is lost, `exchange` passes small values between
them, `compilation_cache` keeps compiled programs on disk, `program_costs` reads memory
use and traffic from a compiled program, `_jax_internals` holds what JAX keeps private.
"""

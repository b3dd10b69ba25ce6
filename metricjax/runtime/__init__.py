"""Devices and hosts of a run: the mesh, joining, watching, compiled programs.

`mesh` lays out the devices, `connection` joins the hosts, `watchdog` ends them together
if one is lost, `exchange` passes small facts between them, `compilation_cache` keeps
compiled programs, `program_costs` says what they need.
"""

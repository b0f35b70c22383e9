"""Measurements under load. Each starts a service, sends it load, and prints a table and one line of JSON.

python -m loadtest          overload, spike, soak
python -m loadtest.chaos    faults
results                     report: of a scenario (loadtest.load.scenarios), as a table, picture and page; plots
"""

"""Where a run can be put: each target renders files (pure) and submits them.

request.py      what every target gets, and gives back
local.py  ray_jobs.py  slurm.py  kubernetes.py
    render(request) -> Rendered        text only: no file, no clock, no environment is read
    submit(request, directory, detach) -> Submission
"""

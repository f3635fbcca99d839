"""Helper of test_saving_killed.py: the worker, which kills itself as one rank at a moment of its second save.

python saving_killed.py JOB.json RANK MOMENT      with RANK, WORLD_SIZE, … in the environment
"""

from __future__ import annotations

import os
import sys

from pipeline.train.worker import main
from tests.integration.worker_killed import kill_at

if os.environ["RANK"] == sys.argv[2]:
    kill_at(sys.argv[3])
os._exit(main([sys.argv[1], "--device=cpu"]))

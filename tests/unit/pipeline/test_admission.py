"""Whether a job fits: resources of the whole cluster and of each node, sizes of a gang."""

from __future__ import annotations

from pipeline.admission import lacking, size_for, total
from tests.helpers.planned import item


def test_what_never_fits_is_named_with_both_numbers() -> None:
    lack = lacking([item("pretrain", gpus=2, workers=2)], [{"CPU": 8, "GPU": 1}])
    assert lack is not None
    assert lack[1] == "pretrain needs 4 GPU, the cluster has 1"
    assert lacking([item("pretrain", workers=4, sizes=(2, 4))], [{"CPU": 2}]) is None


def test_a_job_that_no_node_holds_alone_is_named_though_the_cluster_is_large_enough() -> None:
    nodes = [{"CPU": 4, "GPU": 1}] * 3
    lack = lacking([item("choose/a", cpus=1, gpus=2)], nodes)
    assert lack is not None
    assert "needs 1 × 1 CPU and 2 GPU, each on one node" in lack[1]
    assert "3 nodes hold 0 of them" in lack[1]
    # Six CPUs for a rank of three on nodes of four: one a node.
    assert lacking([item("pretrain", cpus=3, workers=3)], nodes) is None
    lack = lacking([item("pretrain", cpus=3, workers=4)], nodes)
    assert lack is not None
    assert "hold 3 of them" in lack[1]


def test_a_gang_takes_the_largest_of_its_sizes_that_has_room() -> None:
    gang = item("pretrain", workers=8, sizes=(1, 2, 4, 8))
    assert [size_for(gang, {"CPU": cpus}) for cpus in (9, 7, 4, 3, 0)] == [8, 4, 4, 2, 0]
    # Tenths do not add up exactly.
    assert size_for(item("pretrain", cpus=0.1, workers=3, sizes=(3,)), {"CPU": 0.1 + 0.1 + 0.1 - 1e-9}) == 3


def test_total_is_the_sum_over_nodes() -> None:
    assert total([{"CPU": 2, "GPU": 1, "memory": 9}, {"CPU": 3}]) == {"CPU": 5, "GPU": 1}

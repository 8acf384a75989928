"""The plan: the same ranks as torchrun's, for any nodes, in any order of arrival."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_train_parallel.errors import NodesDisagree
from bert_train_parallel.launching.plan import Hello, LaunchRequest, Node, WorldPlan, make_plan, missing_ranks

COUNTS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def hellos_of(counts: list[int]) -> list[Hello]:
    return [Hello(f"node{number}", count, others=sum(counts) - count, node_rank=number) for number, count in enumerate(counts)]


@given(COUNTS)
def test_every_rank_is_handed_out_once(counts: list[int]) -> None:
    plan = WorldPlan(tuple(Node(str(number), count) for number, count in enumerate(counts)))
    handed_out = [rank for number in range(len(counts)) for rank in plan.ranks_on(number)]
    assert handed_out == list(range(plan.world_size))


@pytest.mark.parametrize("counts", [[1, 1], [3, 1], [2, 3, 1], [1, 1, 1, 1], [5]])
def test_ranks_are_those_of_torchrun(counts: list[int]) -> None:
    from types import SimpleNamespace

    from torch.distributed import HashStore
    from torch.distributed.elastic.agent.server.api import SimpleElasticAgent, _RoleInstanceInfo

    store = HashStore()
    for number, count in enumerate(counts):
        store.set(f"torchelastic/role_info/{number}", _RoleInstanceInfo("trainer", number, count).serialize())
    plan = make_plan(LaunchRequest(("a.py",), here=counts[0], others=sum(counts[1:])), hellos_of(counts))
    for number, count in enumerate(counts):
        spec = SimpleNamespace(role="trainer", local_world_size=count)
        workers = SimpleElasticAgent._assign_worker_ranks(None, store, number, len(counts), spec)
        ours = [plan.rank(number, local_rank) for local_rank in range(count)]
        assert [(rank.rank, rank.local_rank, rank.world_size) for rank in ours] == [
            (worker.global_rank, worker.local_rank, worker.world_size) for worker in workers
        ]


@given(COUNTS, st.randoms())
def test_order_of_arrival_does_not_change_given_node_ranks(counts: list[int], order) -> None:  # type: ignore[no-untyped-def]
    master, *others = hellos_of(counts)
    order.shuffle(others)
    plan = make_plan(LaunchRequest(("a.py",), here=counts[0], others=sum(counts[1:])), [master, *others])
    assert [node.ranks for node in plan.nodes] == counts


def test_a_world_that_is_not_complete_has_no_plan() -> None:
    with pytest.raises(NodesDisagree, match="2 GPUs missing: alpha"):
        make_plan(LaunchRequest(("a.py",), here=1, others=3), [Hello("alpha", 1, others=3), Hello("beta", 1, others=3)])


def test_two_nodes_with_one_rank_have_no_plan_and_the_sentence_names_both() -> None:
    hellos = [Hello("alpha", 1, others=2), Hello("beta", 1, others=2, node_rank=1), Hello("gamma", 1, others=2, node_rank=1)]
    with pytest.raises(NodesDisagree, match=r"beta and gamma are both node 1.*--node_rank"):
        make_plan(LaunchRequest(("a.py",), here=1, others=2), hellos)


def test_a_node_rank_beyond_the_nodes_is_refused() -> None:
    hellos = [Hello("alpha", 1, others=1), Hello("beta", 1, others=1, node_rank=2)]
    with pytest.raises(NodesDisagree, match=r"beta has --node_rank 2, and this world has 2 nodes. Use 0 to 1"):
        make_plan(LaunchRequest(("a.py",), here=1, others=1), hellos)


def test_a_node_of_a_map_may_bring_fewer_ranks_than_the_map_says() -> None:
    request = LaunchRequest(("a.py",), gpu_map={"alpha": 4, "beta": 2}, node_rank=0)
    hellos = [Hello("alpha", 1, node_rank=0), Hello("beta", 2, node_rank=1)]
    assert missing_ranks(request, hellos) == 0
    assert list(make_plan(request, hellos).ranks_on(1)) == [1, 2]


def test_a_map_of_one_host_is_a_world_of_one_node() -> None:
    plan = make_plan(LaunchRequest(("a.py",), gpu_map={"alpha": 2}, node_rank=0), [Hello("alpha", 2, others=0)])
    assert plan.world_size == 2


def test_one_node_without_a_gpu_makes_the_backend_gloo_for_all() -> None:
    gpus = Node("alpha", 2, ("GPU-1", "GPU-2"))
    assert WorldPlan((gpus, gpus)).backend == "nccl"
    mixed = WorldPlan((gpus, Node("beta", 1)))
    assert {mixed.rank(0, 0).backend, mixed.rank(1, 0).backend} == {"gloo"}
    assert (mixed.rank(0, 0).device, mixed.rank(1, 0).device) == ("cuda", "cpu")


def test_instances_of_one_gpu_make_the_backend_gloo_since_nccl_takes_them_for_the_same_gpu() -> None:
    instances = WorldPlan((Node("alpha", 2, ("MIG-1", "MIG-2")), Node("beta", 1, ("GPU-1",))))
    assert {instances.rank(0, 1).backend, instances.rank(1, 0).backend} == {"gloo"}
    assert instances.rank(0, 1).device == "cuda"

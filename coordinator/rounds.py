"""The transitions of a round: select, configure, collect, aggregate, adjust, evaluate, commit.

Each function does the work of one phase and ends in one transaction that moves the round to the next phase. Work before
the transaction writes only content-addressed blobs, so that after a crash it is done again with the same result. The
functions know nothing of a transport; `machine` sends what follows from them.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import Any

from fedmpq.coordinator import aggregate, partial, quarantine, referee, robust, updates
from fedmpq.coordinator.config import fx_of
from fedmpq.coordinator.fixed import div, median, mul, norm
from fedmpq.coordinator.global_model import GlobalLayer, GlobalModel, read_layer
from fedmpq.coordinator.journal import Row, ints
from fedmpq.coordinator.policy import Allotment
from fedmpq.coordinator.run_state import RunState, mean_bits_of
from fedmpq.edge_runtime import protocol, topics
from fedmpq.edge_runtime.trainer import Layer
from fedmpq.errors import BudgetError, ConfigError, RoundError

#: Judges a global model: (model, bits per label) -> metrics. See evaluate.
Evaluator = Callable[[GlobalModel, dict[str, tuple[int, ...]]], dict[str, Any]]

#: States of an assignment in which nothing more is expected of the device.
ANSWERED = ("accepted", "refused", "rejected")


def client_number(device: str) -> int:
    """The device's number in the random keys: its name's hash, so that no order of arrival matters."""
    number: int = struct.unpack("<I", hashlib.sha256(device.encode()).digest()[:4])[0]
    return 0 if number == 0xFFFFFFFF else number


def eligible(run: RunState) -> list[Row]:
    """Admitted devices that are online, by name."""
    return run.journal.rows("SELECT * FROM devices WHERE online=1 AND admission='admitted' ORDER BY device")


def select(run: RunState, previous: Row | None) -> bool:
    """Opens the next round with the devices that shall train; False while there are too few."""
    config, now = run.config, run.clock()
    if run.journal.present() < config.min_devices:
        return False
    present = eligible(run)
    number = 1 if previous is None else previous["round"] + 1
    present = quarantine.free(run.journal, config.to_dict(), present, number)
    if not present:
        everyone = run.journal.rows("SELECT * FROM devices WHERE admission='admitted' ORDER BY device")
        if quarantine.free(run.journal, config.to_dict(), everyone, number):
            return False  # another one, away for the moment, may train
        raise RoundError("every device is in quarantine", "see `fedmpq coordinator devices`")
    if config.late_rounds:
        query = "SELECT DISTINCT device FROM assignments WHERE state='missed' AND round>=?"
        busy = {found["device"] for found in run.journal.rows(query, number - config.late_rounds)}
        present = [row for row in present if row["device"] not in busy] or present
    target = min(config.per_round or len(present), len(present))
    asked = min(len(present), -(-target * (100 + config.over_selection) // 100))
    drawn = sorted(present, key=lambda row: _draw(config.seed, number, row["device"]))[:asked]
    base = run.journal.meta("model") if previous is None else previous["next_model"]
    mean_bits = mean_bits_of(previous)
    with run.journal.transaction("select") as journal:
        journal.add_row(
            "rounds",
            {
                "round": number,
                "phase": "configure",
                "opened_at": now,
                "target": target,
                "quorum": max(1, -(-target * config.quorum_percent // 100)),
                "base_model": base,
                "mean_bits": list(mean_bits or ()),
            },
        )
        for row in drawn:
            fields = {"round": number, "device": row["device"], "state": "selected", "samples": row["samples"]}
            journal.add_row("assignments", {**fields, "budget16": 0, "bits": [], "planned_bytes": 0})
        journal.event(now, "selected", number, detail=f"{len(drawn)} of {len(present)} devices")
    return True


def configure(run: RunState, row: Row) -> None:
    """Gives every selected device its bits, plan and weight, and starts the clock."""
    config, now = run.config, run.clock()
    allot = run.allotter(row)
    mean_bits = ints(row["mean_bits"]) or None
    chosen: dict[str, Allotment] = {}
    refused: dict[str, str] = {}
    for assignment in run.assignments(row["round"]):
        device = run.device(assignment["device"])
        assert device is not None
        try:
            chosen[device["device"]] = allot(
                device["limit_bytes"] - device["extra_bytes"],
                config.cap16(device["device"]),
                mean_bits,
                ints(device["fallen"]),
            )
        except BudgetError as error:
            refused[device["device"]] = error.message
    samples = {a["device"]: a["samples"] for a in run.assignments(row["round"])}
    raw = {name: _raw_weight(config.weighting, samples[name], a.budget16) for name, a in chosen.items()}
    if config.robust != "none":
        raw = robust.cap_weights(raw)
    shift = aggregate.weight_shift(raw.values())
    deadline = now + config.deadline_s
    with run.journal.transaction("configure") as journal:
        for name, problem in refused.items():
            fields: Row = {"state": "refused", "reason": "budget", "detail": problem}
            journal.set_fields("assignments", {"round": row["round"], "device": name}, fields)
        for name, allotment in chosen.items():
            plan = plan_message(run, row, name, allotment, deadline)
            journal.set_fields(
                "assignments",
                {"round": row["round"], "device": name},
                {
                    "state": "assigned",
                    "budget16": allotment.budget16,
                    "weight": aggregate.scaled_weight(raw[name], shift),
                    "bits": list(allotment.bits),
                    "planned_bytes": allotment.planned_bytes,
                    "plan": protocol.encode(plan),
                    "plan_sha": plan.identity,
                },
            )
        fields = {"phase": "collect", "deadline_at": deadline, "weight_shift": shift}
        journal.set_fields("rounds", {"round": row["round"]}, fields)
        journal.event(now, "configured", row["round"], detail=f"{len(raw)} plans")
    run.traffic.clear()


def plan_message(run: RunState, row: Row, device: str, allotment: Allotment, deadline: float) -> protocol.PlanMessage:
    """What one device is told to train."""
    config = run.config
    layers = run.serving(row).prepare(allotment.bits)
    total = norm(sum(run.layout.thetas), 0)
    lasso = tuple(mul(fx_of(config.lasso), div(norm(theta, 0), total)) for theta in run.layout.thetas)
    return protocol.PlanMessage(
        run=config.run,
        round=row["round"],
        program=run.layout.program,
        program_size=len(run.program),
        settings=config.settings,
        layers=tuple(layer.blobs for layer in layers),
        epochs=config.epochs,
        seed=config.seed,
        client=client_number(device),
        lr=fx_of(config.rate(row["round"])),
        weight_decay=fx_of(config.weight_decay),
        momentum_q15=config.momentum_q15 if config.momentum else 0,
        lasso=lasso if config.lasso else (),
        eps_q16=round(config.prune_density * 65536),
        planned_bytes=allotment.planned_bytes,
        sent_ms=int(run.clock() * 1000),
        deadline_ms=int(deadline * 1000),
        late_rounds=config.late_rounds,
    )


def may_close(run: RunState, row: Row) -> bool:
    """Whether collecting is over: enough updates, everyone answered, or the deadline with a quorum.

    A deadline without a quorum is moved (and that journalled) up to `extensions` times.

    Raises:
        RoundError: nobody's update can come any more, or the extensions are used up.
    """
    problem = hopeless(run, row)
    if problem:
        hint = "see `fedmpq coordinator status`; start again to give this round up and go on with the next"
        raise RoundError(f"round {row['round']}: {problem}", hint)
    states = _states(run, row)
    accepted = states.get("accepted", 0)
    if accepted >= row["target"] or all(state in ANSWERED for state in states):
        return True
    now = run.clock()
    if now < row["deadline_at"]:
        return False
    if accepted >= row["quorum"]:
        return True
    if row["extensions"] >= run.config.extensions:
        raise RoundError(
            f"round {row['round']}: {accepted} of {row['quorum']} updates needed came by the last deadline",
            "see `fedmpq coordinator devices`; start again to continue",
        )
    with run.journal.transaction("extend") as journal:
        journal.set_fields(
            "rounds",
            {"round": row["round"]},
            {"deadline_at": now + run.config.deadline_s, "extensions": row["extensions"] + 1},
        )
        journal.event(now, "no-quorum", row["round"], detail=f"{accepted} of {row['quorum']} at the deadline")
    return False


def _states(run: RunState, row: Row) -> dict[str, int]:
    """How many of a round's devices are in which state."""
    query = "SELECT state, COUNT(*) AS n FROM assignments WHERE round=? GROUP BY state"
    return {found["state"]: found["n"] for found in run.journal.rows(query, row["round"])}


def hopeless(run: RunState, row: Row) -> str:
    """Why a round that collects cannot succeed any more; empty while it can."""
    states = _states(run, row)
    failed = sum(states.get(state, 0) for state in ("refused", "rejected"))
    everyone = sum(states.values())
    if failed * 100 > run.config.abort_percent * everyone:
        most = f"more than abort_percent = {run.config.abort_percent}"
        return f"{failed} of {everyone} devices refused or were rejected, {most}"
    if failed == everyone:
        return f"no update was accepted, {everyone} devices refused or were rejected"
    return ""


def give_up(run: RunState, row: Row) -> None:
    """Ends a hopeless round without a result, within a transaction: the model stays, the next round draws anew."""
    fields: Row = {"phase": "commit", "next_model": row["base_model"], "next_bits": row["mean_bits"], "metrics": {}}
    run.journal.set_fields("rounds", {"round": row["round"]}, {**fields, "closed_at": run.clock()})
    run.journal.event(run.clock(), "given-up", row["round"], detail=hopeless(run, row))


def close(run: RunState, row: Row) -> None:
    """Freezes the set of updates that count."""
    now = run.clock()
    with run.journal.transaction("close") as journal:
        for assignment in run.assignments(row["round"]):
            key = {"round": row["round"], "device": assignment["device"]}
            up, down = run.traffic.get(assignment["device"], (assignment["bytes_up"], assignment["bytes_down"]))
            fields: dict[str, object] = {"bytes_up": up, "bytes_down": down}
            if assignment["state"] not in ANSWERED:
                fields |= {"state": "missed", "reason": "deadline", "detail": "no update by the deadline"}
                journal.event(now, "missed", row["round"], assignment["device"])
            journal.set_fields("assignments", key, fields)
        journal.set_fields("rounds", {"round": row["round"]}, {"phase": "aggregate", "closed_at": now})


def aggregate_round(run: RunState, row: Row) -> None:
    """Sums the accepted updates exactly and writes the next global model (eq. 15)."""
    serving = run.serving(row)
    if run.config.robust != "none":
        _aggregate_robust(run, row)
        return
    given = partial.RoundInput(run.program, run.blobs.get(row["base_model"]), run.config, row["round"])
    accepted = [a for a in run.assignments(row["round"]) if a["state"] == "accepted"]
    late = [a for a in accepted if _trained_in(a) != row["round"]] if run.config.late_rounds else []
    accepted = [a for a in accepted if a not in late]
    if run.sums is None:
        total = partial.add_all(run.layout, serving, given, (update_input(run, a) for a in accepted))
    else:
        total = run.sums(given, (update_input(run, a) for a in accepted), len(accepted))
    for assignment in late:
        old = run.journal.row("SELECT * FROM rounds WHERE round=?", _trained_in(assignment))
        assert old is not None
        before = partial.RoundInput(run.program, b"", run.config, old["round"])
        total.merge(partial.add_all(run.layout, run.serving(old), before, [update_input(run, assignment)]))
    merged = total.finish(serving.model, pooled_variance=run.config.pooled_variance)
    model = run.blobs.put(_with_momentum(run, row, merged).to_bytes())
    with run.journal.transaction("aggregate") as journal:
        journal.set_fields(
            "rounds",
            {"round": row["round"]},
            {"phase": "adjust", "next_model": model, "next_bits": total.mean_bits()},
        )
        journal.event(run.clock(), "aggregated", row["round"], detail=f"{total.clients} updates -> {model[:12]}")


def _trained_in(assignment: Row) -> int:
    """The round whose plan an accepted update followed."""
    manifest = protocol.decode(topics.UPDATE, assignment["manifest"])
    assert isinstance(manifest, protocol.Update)
    return manifest.round


def late_weight(run: RunState, row: Row, old: Row, assignment: Row) -> int:
    """What a late update weighs in the present round: half for every round that it is late; 0 if none is left."""
    raw = assignment["weight"] << old["weight_shift"]
    weight = max(1, aggregate.scaled_weight(raw, row["weight_shift"]) >> (row["round"] - old["round"]))
    (sums,) = run.journal.rows("SELECT SUM(weight) AS total FROM assignments WHERE round=?", row["round"])
    return weight if (sums["total"] or 0) + weight <= aggregate.WEIGHT_TOTAL else 0


def replan(run: RunState, row: Row, assignment: Row, limit: int) -> bytes | None:
    """A smaller plan for a device whose memory has shrunk; None if nothing fits any more, or it was tried enough."""
    device = run.device(assignment["device"])
    assert device is not None
    tried = run.journal.rows(
        "SELECT id FROM events WHERE kind='replanned' AND round=? AND device=?", row["round"], assignment["device"]
    )
    if len(tried) >= run.config.retries or not 0 < limit < device["limit_bytes"]:
        return None
    name, room = device["device"], limit - device["extra_bytes"]
    mean_bits = ints(row["mean_bits"]) or None
    try:
        allotment = run.allotter(row)(room, run.config.cap16(name), mean_bits, ints(device["fallen"]))
    except BudgetError:
        return None
    plan = plan_message(run, row, name, allotment, row["deadline_at"])
    fields: Row = {
        "bits": list(allotment.bits),
        "budget16": allotment.budget16,
        "planned_bytes": allotment.planned_bytes,
        "plan": protocol.encode(plan),
        "plan_sha": plan.identity,
    }
    # Its weight may only fall: the round's bound on the sum of all weights was set with the first plan.
    if run.config.weighting == "samples-bits" and assignment["budget16"]:
        fields["weight"] = max(1, assignment["weight"] * min(allotment.budget16, assignment["budget16"])
                               // assignment["budget16"])  # fmt: skip
    with run.journal.transaction("replan") as journal:
        journal.set_fields("devices", {"device": name}, {"limit_bytes": limit})
        journal.set_fields("assignments", {"round": row["round"], "device": name}, fields)
        detail = f"{limit} bytes are left of {device['limit_bytes']}: {allotment.planned_bytes} planned"
        journal.event(run.clock(), "replanned", row["round"], name, detail)
    return protocol.encode(plan)


def _aggregate_robust(run: RunState, row: Row) -> None:
    """As `aggregate_round`, by a rule that bounds what each client can do."""
    config, serving = run.config, run.serving(row)
    accepted = [a for a in run.assignments(row["round"]) if a["state"] == "accepted"]
    left_out: dict[str, str] = {}
    if config.robust == "referee":
        left_out = _left_out(run, row, accepted)
        accepted = [a for a in accepted if a["device"] not in left_out]
    contributions = [stored_update(run, assignment, row) for assignment in accepted]
    merged = robust.merge(config.robust, config.trim_percent, config.aggregation, serving.model, contributions)
    model = run.blobs.put(_with_momentum(run, row, merged).to_bytes())
    bits = robust.mean_bits(contributions)
    with run.journal.transaction("aggregate") as journal:
        fields = {"phase": "adjust", "next_model": model, "next_bits": bits}
        journal.set_fields("rounds", {"round": row["round"]}, fields)
        for device, detail in left_out.items():
            journal.event(run.clock(), "left-out", row["round"], device, detail)
        journal.event(run.clock(), "aggregated", row["round"], detail=f"{len(contributions)} updates -> {model[:12]}")


def _left_out(run: RunState, row: Row, accepted: list[Row]) -> dict[str, str]:
    """Devices whose updates the referee leaves out of a round, each with the figures that speak against it."""
    if run.referee is None:
        raise ConfigError('robust = "referee" needs images to judge with', "--referee SHARD, not the test shard")
    margins = [run.referee.margin(stored_layers(run, assignment), row["round"]) for assignment in accepted]
    middle = median(margins)
    # The last round of each device before this one, and whether it was left out of it.
    query = (
        "SELECT a.device FROM assignments a JOIN events e ON e.round=a.round AND e.device=a.device "
        "WHERE e.kind='left-out' AND a.round="
        "(SELECT MAX(round) FROM assignments WHERE device=a.device AND state='accepted' AND round<?)"
    )
    known = {found["device"] for found in run.journal.rows(query, row["round"])}
    before = [index for index, assignment in enumerate(accepted) if assignment["device"] in known]
    return {
        accepted[index]["device"]: f"margin {margins[index] / referee.ONE:.3f}, the median {middle / referee.ONE:.3f}"
        for index in referee.outliers(margins, before)
    }


def _with_momentum(run: RunState, row: Row, merged: GlobalModel) -> GlobalModel:
    """The merged model after server momentum, from the second round on."""
    share = run.config.server_momentum_q15
    last = run.journal.row("SELECT base_model FROM rounds WHERE round=?", row["round"] - 1) if share else None
    if last is None:
        return merged
    return aggregate.go_on(merged, run.serving(row).model, run.model(last["base_model"]), share)


def stored_update(run: RunState, assignment: Row, row: Row) -> robust.Contribution:
    """An accepted update: held packed, as it came, and unpacked one layer at a time."""
    serving = run.serving(row)
    manifest = protocol.decode(topics.UPDATE, assignment["manifest"])
    assert isinstance(manifest, protocol.Update)
    data = run.blobs.get(assignment["pack"])
    start_bits = ints(assignment["bits"])
    act_bits = run.config.act_bits

    def layer(index: int) -> tuple[GlobalLayer, GlobalLayer]:
        found = updates.layer_of_file(run.layout, manifest.layers, data, index)
        return serving.start(index, start_bits[index]), read_layer(run.layout.layers[index], found, act_bits)

    bits, steps = [layer.bits for layer in manifest.layers], [layer.step for layer in manifest.layers]
    return robust.Contribution(assignment["weight"], bits, steps, layer)


def stored_layers(run: RunState, assignment: Row) -> list[Layer]:
    """The layers of an accepted update as its device sent them."""
    manifest = protocol.decode(topics.UPDATE, assignment["manifest"])
    assert isinstance(manifest, protocol.Update)
    blobs = updates.unpack_file(run.layout, manifest.layers, run.blobs.get(assignment["pack"]))
    return [
        Layer(layer.bits, layer.step, tuple(blobs[sha256] for sha256 in layer.planes), blobs[layer.params])
        for layer in manifest.layers
    ]


def update_input(run: RunState, assignment: Row) -> partial.UpdateInput:
    """One stored update as a worker takes it."""
    bits, weight = ints(assignment["bits"]), assignment["weight"]
    return partial.UpdateInput(assignment["manifest"], run.blobs.get(assignment["pack"]), weight, bits)


def adjust(run: RunState, row: Row) -> None:
    """Alg. 2 for every admitted device, from the new mean bit-widths (eq. 16)."""
    # The new model and means are those the next round will start from.
    allot = run.allotter({**row, "base_model": row["next_model"]})
    mean_bits = ints(row["next_bits"])
    changes: list[tuple[str, Row]] = []
    for device in run.journal.rows("SELECT * FROM devices WHERE admission='admitted' ORDER BY device"):
        try:
            allotment = allot(
                device["limit_bytes"] - device["extra_bytes"],
                run.config.cap16(device["device"]),
                mean_bits,
                ints(device["fallen"]),
            )
        except BudgetError as error:
            changes.append((device["device"], {"admission": "refused", "reason": "budget", "detail": str(error)}))
            continue
        fields: Row = {"bits": list(allotment.bits), "budget16": allotment.budget16}
        fields["planned_bytes"] = allotment.planned_bytes + device["extra_bytes"]
        changes.append((device["device"], fields))
    with run.journal.transaction("adjust") as journal:
        for name, values in changes:
            journal.set_fields("devices", {"device": name}, values)
        journal.set_fields("rounds", {"round": row["round"]}, {"phase": "evaluate"})


def evaluate(run: RunState, row: Row, evaluator: Evaluator | None) -> None:
    """Judges the new global model at `eval_bits` and at the bit-widths of the devices."""
    config = run.config
    due = row["round"] % config.eval_every == 0 or row["round"] == config.rounds
    metrics: dict[str, Any] | None = None
    if evaluator is not None and due:
        targets = {"global": (config.eval_bits,) * len(run.layout.layers)}
        if config.eval_budgets:
            for assignment in run.assignments(row["round"]):
                if assignment["bits"]:
                    targets.setdefault(f"{assignment['budget16'] / 16:g}", ints(assignment["bits"]))
        metrics = evaluator(run.model(row["next_model"]), targets)
    with run.journal.transaction("evaluate") as journal:
        journal.set_fields("rounds", {"round": row["round"]}, {"phase": "commit", "metrics": metrics or {}})


def commit(run: RunState, row: Row) -> None:
    """Ends the round: its result becomes the model of the run."""
    now = run.clock()
    with run.journal.transaction("commit") as journal:
        journal.set_meta("model", row["next_model"])
        journal.set_fields("rounds", {"round": row["round"]}, {"phase": "done", "committed_at": now})
        journal.event(now, "committed", row["round"])
    run.blobs.collect_garbage(run.journal.blob_names())


def _draw(seed: int, round_no: int, device: str) -> bytes:
    return hashlib.sha256(f"{seed}/{round_no}/{device}".encode()).digest()


def _raw_weight(weighting: str, samples: int, budget16: int) -> int:
    return samples * budget16 if weighting == "samples-bits" else samples

"""Bad clients against the rules of robust aggregation: the final accuracy of every pair, as one JSON document.

    python benchmarks/byzantine.py --data digits --model resnet8 --rounds 10 --epochs 2 --out byzantine-digits.json

Every run has the same clients, data, first model and seed; only the attack and the rule differ. Attackers keep to the
protocol (coordinator/attacks.py). Pairs that the file holds already are not run again. `none` under no attack is the
run that the others are compared with.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path
from time import monotonic

from fedmpq.coordinator import source
from fedmpq.coordinator.attacks import Attack
from fedmpq.coordinator.service import parse_setting
from fedmpq.coordinator.simulate import Simulation
from fedmpq.experiments.run import config_of
from fedmpq.experiments.setting import Setting, prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--alpha", type=float, default=0.5, help="0 for an even partition")
    parser.add_argument("--train", type=int)
    parser.add_argument("--test", type=int)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--attacks", default="none,label-flip:0.2,scale:0.2:10")
    parser.add_argument("--rules", default="none,clip,trimmed,referee")
    parser.add_argument("--referee", type=int, default=200, help="training images kept from the clients in every run")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    runs: list[dict[str, object]] = json.loads(options.out.read_text())["runs"] if options.out.is_file() else []
    done = {(run["seed"], run["attack"], run["rule"]) for run in runs}
    for seed in map(int, options.seeds.split(",")):
        setting = Setting(
            data=options.data, model=options.model, clients=options.clients, alpha=options.alpha or None, seed=seed,
            rounds=options.rounds, epochs=options.epochs, lr=options.lr, train=options.train, test=options.test,
            referee=options.referee,
        )  # fmt: skip
        prepared = prepare(setting)
        for attack in options.attacks.split(","):
            for rule in options.rules.split(","):
                if (seed, attack, rule) in done:
                    continue
                keys = {"robust": rule, **dict(parse_setting(text) for text in options.settings)}
                config = config_of("fedmpq", prepared, keys)
                mean, test = bytes(prepared.dataset.mean), prepared.judged
                origin = source.of_model(options.model, test, mean, crop_pad=prepared.crop_pad, seed=seed)
                began = monotonic()
                with tempfile.TemporaryDirectory() as folder:
                    made = None if attack == "none" else Attack.parse(attack)
                    simulation = Simulation(
                        Path(folder), config, origin, prepared.fleet, test, attack=made, referee=prepared.referee
                    )
                    rounds = simulation.play()["rounds"]
                    simulation.close()
                curve = [row["accuracy"] for row in rounds]
                runs.append(
                    {
                        "seed": seed,
                        "attack": attack,
                        "rule": rule,
                        "accuracy": curve[-1],
                        "curve": curve,
                        "attackers": sorted(simulation.attackers),
                        "seconds": round(monotonic() - began, 1),
                    }
                )
                print(f"seed {seed} {attack:16} {rule:8} {curve[-1]:6.2f} %  {runs[-1]['seconds']} s", file=sys.stderr)
                command = "python benchmarks/byzantine.py " + shlex.join(sys.argv[1:])
                options.out.write_text(json.dumps({"command": command, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""DSDM on one page: Algorithm 1 of the paper as a plain loop, on the embedded digits.

No run folder, no compiled path, no batching over classes: what `potstill.methods.dsdm` does by default, in the order of
the paper. Where that default departs from the paper's text a comment names the row of docs/fidelity.md that says why.

    python examples/dsdm_one_page.py
"""

import argparse

import torch

import potstill
from potstill.learning import augment
from potstill.learning.fit import Schedule, fit
from potstill.machine.runtime import Runtime
from potstill.matching.features import integrate_history, match_covariances, match_history, match_prototypes
from potstill.networks import build_network
from potstill.sets.parameterisations.tiles import decode
from potstill.sets.synthetic import SyntheticSet, initial_images
from potstill.spec import normalise, to_pixels


def dsdm(data, *, ipc=2, factor=(1, 1), networks=2, epochs=10, steps=60, rate=0.01, lambda_1=50.0, lambda_2=0.2):
    spec, train, stream = data.spec, data.train, torch.Generator().manual_seed(0)
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    strategy = augment.Strategy.parse("color_crop_cutout", mirror=spec.mirror)

    # 1: train M models on T
    schedule = Schedule(epochs=epochs, batch=64, learning_rate=0.02)
    models = [
        fit(build_network("convnet", spec, m), train, spec, schedule, Runtime(), seed=m).requires_grad_(False)
        for m in range(networks)
    ]
    # 2: initialise S
    images = initial_images(train, spec, ipc=ipc, parameterisation=factor)
    history = {}
    for step in range(steps):
        # 4: draw a feature extractor
        m = int(torch.randint(networks, (), generator=stream))
        images.requires_grad_()
        loss = torch.zeros(())
        prototypes = []
        for c in range(spec.num_classes):
            # 5: a batch of real images of the class, all synthetic ones; one augmentation draw for both
            members = (train.labels == c).nonzero().flatten()
            real = to_pixels(train.images[members[torch.randperm(len(members), generator=stream)[:64]]])
            synthetic = decode(images[c], factor).flatten(0, 1)
            draw = augment.draw(strategy, 1, stream)

            def embed(pixels, model=models[m], draw=draw):
                uniform = draw.uniform.expand(len(pixels), -1)
                return model.embed(augment.apply(normalise(pixels, mean, std), draw.operations, uniform))[None]

            with torch.no_grad():
                f_real = embed(real)
            f_synthetic = embed(synthetic)
            # 6 to 9: Eq. (4), (5), (6) and their sum (9); the covariance by n - 1 (row 1), the history over D (row 3)
            loss = loss + match_prototypes(f_real, f_synthetic)
            loss = loss + lambda_1 * match_covariances(f_real, f_synthetic)
            if m in history:
                loss = loss + lambda_2 * match_history(f_synthetic, history[m][c : c + 1], divide=True)
            prototypes.append(f_synthetic.detach().mean(dim=1))
        # 10: update S
        (gradient,) = torch.autograd.grad(loss, images)
        images = (images.detach() - rate * gradient).clamp(*spec.value_range)
        # 11, 12: the historical prototypes, Eq. (7) and (8); of the step's own features (row 6), the first one as it is
        # (row 5), a history for each network (row 19)
        current = torch.cat(prototypes)
        history[m] = integrate_history(history[m], current, 0.99) if m in history else current
        if step % 10 == 0:
            print(f"step {step:4d}  loss {loss.item():8.2f}")
    return SyntheticSet(images, spec, factor)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=100, help="of the evaluation")
    options = parser.parse_args()
    digits = potstill.load_dataset("digits")
    distilled = dsdm(digits, steps=options.steps)
    random = potstill.distill(digits, method="random", ipc=2, factor=(1, 1)).synthetic
    for name, small in (("random", random), ("DSDM", distilled)):
        scores = potstill.evaluate(small, digits.test, nets=1, protocol="mnist", epochs=options.epochs)
        print(f"{name:8s}{scores}")

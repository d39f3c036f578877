"""Why an image has its labels: what adds to a logit, the label's strongest groups, and a picture of where the network looked.

    python examples/explain.py BUNDLE IMAGE [PICTURE.png]

Prints for the likeliest label the parts of its logit, their sum and its groups, and writes the picture.
"""

import sys

import msrn

bundle, image = sys.argv[1:3]
picture = sys.argv[3] if len(sys.argv) > 3 else "why.png"
predictor = msrn.load(bundle)
label = predictor.predict(image, top_k=1)[0].labels[0]
found = predictor.explain(image, [label.name])
row = found.to_dict()["labels"][0]
print(f"{label.name}: probability {label.probability:.2f}, logit {row['logit']:.3f}")
parts = {f"stage {number}": stage["contribution"] for number, stage in enumerate(row["stages"], 1)}
parts |= {"residual": row["residual"]["contribution"], "constant": row["constant"], "rest": row["rest"]}
for name, value in parts.items():
    print(f"  {name:<10} {value:+.3f}")
print(f"  sum        {sum(parts.values()):+.3f}")
for group in found.groups[label.name][:3]:
    print(
        f"  group {group['group']}: {group['contribution']:+.3f} of the logit, {group['membership']:.0%} of the label"
    )
found.plot().savefig(picture)
print(picture)

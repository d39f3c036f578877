// One slider for all labels: 50 is each label's own threshold, 0 keeps every label, 100 only certain ones.

export function thresholdAt(strictness, own) {
  if (own > 1) return strictness === 0 ? 0 : own; // a label that is never predicted
  const share = strictness / 50;
  return share <= 1 ? own * share : own + (1 - own) * (share - 1);
}

export function strictnessWords(strictness) {
  if (strictness === 50) return "as is";
  return strictness < 50 ? `${50 - strictness} looser` : `${strictness - 50} stricter`;
}

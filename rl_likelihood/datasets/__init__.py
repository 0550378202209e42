"""Data sets by name. One file each: how its original distribution becomes examples, and how it is split."""

from rl_likelihood.datasets import (
    alpaca,
    competition_math,
    countdown,
    cruxeval_o,
    deepscaler,
    gsm8k,
    humaneval,
    mawps,
    minif2f,
    mmlu_pro,
    numina_proof,
    proofnet,
    svamp,
    tau2_telecom,
    telemath,
    teleqna,
)

DATASETS = {
    dataset.name: dataset
    for dataset in (
        gsm8k.DATASET,
        competition_math.DATASET,
        deepscaler.DATASET,
        alpaca.DATASET,
        numina_proof.DATASET,
        svamp.DATASET,
        mawps.DATASET,
        countdown.DATASET,
        cruxeval_o.DATASET,
        humaneval.DATASET,
        mmlu_pro.DATASET,
        teleqna.DATASET,
        teleqna.FREE,
        tau2_telecom.TURNS,
        tau2_telecom.ALL_TURNS,
        tau2_telecom.EXPERT,
        tau2_telecom.WHOLE,
        telemath.DATASET,
        minif2f.DATASET,
        proofnet.DATASET,
    )
}

"""CD-MoE: layers condensed to their shared and a few routed experts (arXiv 2412.00069).

The paper's steps, in order, and where each is:

1. The condensed layer: no router, constants for weights (``condensed_layer``).
2. What is minimised: the divergence of hidden states over calibration documents
   (``divergence``), from one pass of the original model (``calibration``).
3. Greedy selection of the experts of a layer (``expert_selection``), then of the layers
   (``layer_selection``).
4. The lightweight fine-tune is ``leanmoe distill --train condensed``
   (``leanmoe_pruning.distillation``).

``cd_moe`` is the method that runs them, ``cd_moe_dump`` what ``--dump`` writes of it;
``search_cost`` counts forward passes beside the published scripts', ``memory`` is where a search
keeps what it would compute again.
"""

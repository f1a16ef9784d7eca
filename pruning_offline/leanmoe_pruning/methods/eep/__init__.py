"""EEP: evolutionary expert pruning and merging without gradients (arXiv 2407.00945).

The paper's steps, in order, and where each is:

1. The space: per depth group a router-mapping and an expert-merging matrix (``individual``), and
   the model they stand for (``merged_model``).
2. The search, Algorithm 1 (``evolution``): a random population (``population``), children of a
   prune phase and then of a merge phase (``phases``), by crossover and mutation (``operators``)
   with the released probabilities (``draws``).
3. Fitness: the accuracy on the items of a task (``fitness``), in several processes
   (``workers``), every evaluation kept on disk (``store``).
4. ``--method eep`` (``eep``, its options checked in ``eep_options``), and matrices found
   elsewhere (``matrices``) under the formula as published (``published_formula``).
"""

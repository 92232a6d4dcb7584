"""From a recipe to a finished run. What happens on `hf-lottery run RECIPE`:

1. cli/main.run reads the recipe (recipe/recipe.load_recipe) and calls run.run.
2. launch.meet lets the processes of a launcher communicate, and checks that all have the same recipe.
3. run.open_run claims the output folder (claim_output_folder), chooses the rewind step where it is `auto`
   (rewind_step.settle_rewind_step) and makes the experiment (build.make_experiment).
4. experiment/experiment.Experiment.run claims one network after the other. For each, build.build_trainer makes a
   trainer: build.load_data reads the data once, network.build_network makes the model. The trainer trains a round
   (training/search), or a control sets its mask and weights first (experiment/controls).
5. conclude.conclude reads the results, judges them, writes report and ticket, and prints the table.

progress shows bars during the run. workers does steps 3 and 4 in several processes, then 5. plan, with memory and
speed, estimates before a run how much time, disk and memory it needs.
"""

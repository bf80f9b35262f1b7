"""What each check asks, and what a student does next where it does not pass, in plain words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hint:
    """What a check asks of a run, and the next thing to try."""

    asks: str
    next: str


GENERAL = Hint("A property of the run that this exercise asks for.", "Compare what was expected with what was found.")

HINTS = {
    "can be evaluated": Hint(
        "Is there an adapter that can be opened and put on the base?",
        "Restart the kernel, run the notebook from the top, and submit the run folder as it was saved, with "
        "adapter_model.safetensors, adapter_config.json and run.json.",
    ),
    "rank and targets": Hint(
        "Has the adapter the rank, and does it sit on the layers, that the task names?",
        "Set r and target_modules in LoraConfig to what is expected, and train again.",
    ),
    "trainable share": Hint(
        "Does the run train exactly the parameters that this adapter has, and nothing else?",
        "Attach the adapter once, to a fresh base, and leave the base frozen; print_trainable_parameters() tells the share "
        "before you train.",
    ),
    "adapter size": Hint(
        "Is the saved file as large as this adapter must be?",
        "Let train() save the adapter, or call save_pretrained on the PEFT model, and do not edit the file afterwards.",
    ),
    "lora_B moved": Hint(
        "Has training changed the adapter? Its matrix B begins at zero, where an adapter does nothing.",
        "Train before you save, with a learning rate above zero, and save the model that was trained.",
    ),
    "pairs and epochs": Hint(
        "Was it trained on as many pairs, and for as many epochs, as the task says?",
        "Train on the pairs that the notebook reads, for base.epochs epochs unless the task names another number.",
    ),
    "training loss": Hint(
        "Does the loss of the run fall, and stay a number?",
        "Look at the curve: one that stays flat wants a higher learning rate, one that jumps or ends in NaN a lower one.",
    ),
    "chat template": Hint(
        "Does the model answer best in the frame in which it will be asked?",
        "Build the prompt with tokenizer.apply_chat_template(..., add_generation_prompt=True), in training as in use.",
    ),
    "prompt masked": Hint(
        "Does it learn the answers, and not the questions?",
        "Set the label of every token of the prompt to -100, and compare labels with input_ids for one pair.",
    ),
    "end of answer": Hint(
        "Has the model learned to stop?",
        "Put the end-of-answer token after every answer, with itself as its label, and see that padding does not mask it.",
    ),
    "exact match": Hint(
        "Is the generated answer right, letter by letter, for messages that nobody has seen?",
        "Generate answers to a few messages of eval.jsonl, compare them with the right ones field by field, and look for the "
        "field that is wrong most often; then check pairs, epochs and learning rate.",
    ),
    "reads the question": Hint(
        "Is the right answer much likelier after its own question than after another one?",
        "See that every answer is trained with its own question, and compare with loralab.question_control.",
    ),
    "fresh held-out PPL": Hint(
        "Does the adapter help on messages that nobody has seen, about as much as honest runs of this exercise do?",
        "Check one thing at a time: the learning rate, the number of epochs, the answer mask, the training pairs.",
    ),
    "evaluation pairs unseen": Hint(
        "Is it as good on fresh messages as on the public evaluation pairs?",
        "Train on the training pairs only; eval.jsonl is for measuring.",
    ),
    "forgetting": Hint(
        "Is what the base knew before still there?",
        "Lower the learning rate or train for fewer epochs, and watch the perplexity on general.jsonl.",
    ),
    "claims of run.json": Hint(
        "Does run.json tell of the adapter beside it?",
        "Submit the run folder as training left it: adapter and run.json from the same run, neither edited nor swapped.",
    ),
    "functions": Hint(
        "Do the functions that you wrote return the right values for inputs that the notebook does not show?",
        "Restart the kernel, run the notebook from the top, and see which self-check says 'not yet'.",
    ),
    "one thing changed": Hint(
        "Do the runs differ in nothing but what is compared?",
        "Train all runs with the same seed, pairs, epochs, batch size and learning rate, each from a fresh base into a "
        "folder of its own.",
    ),
    "trained on its own base": Hint(
        "Was each adapter trained on the kind of base that its run says, in 4 bits or not?",
        "Train the run that is to be quantised on the 4-bit base and the other on the plain one, and do not mix the folders.",
    ),
}


def hint(check: str) -> Hint:
    """Return the hint on the check of this name."""
    return HINTS.get(check, GENERAL)

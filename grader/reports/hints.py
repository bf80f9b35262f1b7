"""What each check tests, and what to do if it fails, in plain words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hint:
    """What a check tests, and the next thing to try."""

    asks: str
    next: str


GENERAL = Hint("A property of the run that this exercise requires.", "Compare the expected value with the one found.")

HINTS = {
    "can be evaluated": Hint(
        "Is there an adapter that can be loaded onto the base?",
        "Restart the kernel, run all cells, and submit the run folder as it was saved, with "
        "adapter_model.safetensors, adapter_config.json and run.json.",
    ),
    "rank and targets": Hint(
        "Does the adapter have the required rank, on the required layers?",
        "Set r and target_modules in LoraConfig to the expected values, and train again.",
    ),
    "trainable share": Hint(
        "Does the run train exactly the adapter's parameters, and nothing else?",
        "Attach the adapter once, to a fresh base, and leave the base frozen; print_trainable_parameters() shows the share "
        "before training.",
    ),
    "adapter size": Hint(
        "Does the saved file have the size of this adapter?",
        "Let train() save the adapter, or call save_pretrained on the PEFT model, and do not edit the file afterwards.",
    ),
    "lora_B moved": Hint(
        "Did training change the adapter? Its matrix B starts at zero, where an adapter does nothing.",
        "Train before you save, with a learning rate above zero, and save the model that was trained.",
    ),
    "pairs and epochs": Hint(
        "Was it trained on the required number of pairs, for the required number of epochs?",
        "Train on the pairs that the notebook reads, for base.epochs epochs unless the task gives another number.",
    ),
    "training loss": Hint(
        "Does the training loss fall and stay finite?",
        "Look at the curve: if it stays flat, raise the learning rate; if it jumps or ends in NaN, lower it.",
    ),
    "chat template": Hint(
        "Does the model answer best in the prompt format in which it will be used?",
        "Build the prompt with tokenizer.apply_chat_template(..., add_generation_prompt=True), both in training and in use.",
    ),
    "prompt masked": Hint(
        "Does it learn the answers and not the questions?",
        "Set the label of every prompt token to -100, and compare labels with input_ids for one pair.",
    ),
    "end of answer": Hint(
        "Has the model learned to stop?",
        "Put the end-of-answer token after every answer, with itself as its label, and make sure that padding does not mask it.",
    ),
    "exact match": Hint(
        "Is the generated answer exactly right for unseen messages?",
        "Generate answers to a few messages of eval.jsonl, compare them with the right ones field by field, and find the "
        "field that is wrong most often; then check pairs, epochs and learning rate.",
    ),
    "reads the question": Hint(
        "Is the right answer much more likely after its own question than after another one?",
        "Make sure that every answer is trained with its own question, and compare with loralab.question_control.",
    ),
    "fresh held-out PPL": Hint(
        "Does the adapter improve on unseen messages, about as much as the reference runs do?",
        "Check one thing at a time: the learning rate, the number of epochs, the answer mask, the training pairs.",
    ),
    "evaluation pairs unseen": Hint(
        "Is it as good on unseen messages as on the public evaluation pairs?",
        "Train on the training pairs only; eval.jsonl is for evaluation.",
    ),
    "forgetting": Hint(
        "Does the model still know what the base knew? Measured on questions about Python that are drawn for this class.",
        "Lower the learning rate or train for fewer epochs, and watch the perplexity on general.jsonl, questions of the same kind.",
    ),
    "claims of run.json": Hint(
        "Does run.json describe the adapter beside it?",
        "Submit the run folder as training saved it: adapter and run.json from the same run, neither of them edited.",
    ),
    "functions": Hint(
        "Do your functions return the right values for unseen inputs?",
        "Restart the kernel, run all cells, and find the self-check that says 'not yet'.",
    ),
    "one thing changed": Hint(
        "Do the runs differ only in what is compared?",
        "Train all runs with the same seed, pairs, epochs, batch size and learning rate, each from a fresh base into a "
        "folder of its own.",
    ),
    "trained on its own base": Hint(
        "Was each adapter trained on the base that its run requires, in 4 bits or not?",
        "Train the QLoRA run on the 4-bit base and the LoRA run on the plain one, and do not swap the folders.",
    ),
}


def hint(check: str) -> Hint:
    """Return the hint on the check of this name."""
    return HINTS.get(check, GENERAL)

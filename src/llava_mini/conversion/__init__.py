# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
The authors' checkpoints to ours and back. How a tensor gets through, and where each step is:

1. `reading`: a checkpoint is found and opened (`checkpoint_io`: safetensors or .bin, sharded or not; partial ones and
   LoRA over a base model in `partial_checkpoints`; the tower beside it in `vision_tower`). A tensor is a `LazyTensor`
   from here on: a shape and a way to read it.
2. `mapping`: what it becomes. Its name by the one table in `llava_mini.original_names_llava_mini`, without what
   training put before it (`key_mapping`); the configuration (`config_mapping` for the way back), the tokenizer, parts
   that are to be new; and whether it has the shape that our model expects (`model_layout`).
3. `writing`: shards into a directory beside the output, which takes the output's place when all is well
   (`output_directory`), the report of what became of every tensor, comparing the result with the input
   (`verification`), or the authors' layout again (`to_original`).
4. `hub`: the code and a card beside it, and the upload. `measuring`: checkpoints of true size, time and memory.

`command` puts these together: `llava-mini convert`, or the scripts in conversion/ of a checkout.
"""

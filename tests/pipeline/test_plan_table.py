"""The table of a plan, word by word."""

from qtutor.pipeline.plan_table import Row, as_table

ROWS = [
    Row("model.layers.*.self_attn.q_proj", 30, (576, 576), 5_000_000, 19_906_560, 4.25, "gptq", 64),
    Row("model.layers.*.mlp.down_proj", 2, (576, 1536), 900_000, 3_538_944, 8.5, "rtn", -1),
    Row("lm_head", 1, (49152, 576), 14_155_780, 56_623_104, 4.0, "rtn", 0),
    Row("model.embed_tokens", 1, (49152, 576), 56_623_104, 56_623_104, why="the embedding: --embeddings quantizes it"),
    Row("norms, biases", 123, (), 70_272, 70_272, why="one number per channel: nothing to gain"),
]
TABLE = """\
kind of layer                                 shape    method  group    bits          before           after
------------------------------------------------------------------------------------------------------------
 30 model.layers.*.self_attn.q_proj       576 x 576      gptq     64   4.250      19,906,560       5,000,000
  2 model.layers.*.mlp.down_proj         576 x 1536       rtn    row   8.500       3,538,944         900,000
  1 lm_head                             49152 x 576       rtn    all   4.000      56,623,104      14,155,780
total                                                                    25%      80,068,608      20,055,780

These stay in float:
    1 model.embed_tokens, 49152 x 576      56,623,104 bytes  the embedding: --embeddings quantizes it
  123 norms, biases                            70,272 bytes  one number per channel: nothing to gain"""


def test_every_character_of_a_table():
    assert "\n".join(as_table(ROWS)) == TABLE


def test_nothing_is_listed_where_nothing_stays_in_float():
    assert as_table(ROWS[:3]) == TABLE.splitlines()[:6]

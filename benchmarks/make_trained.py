"""Trained weights that never were quantized, with what they are multiplied with; see `--help`."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from safetensors.numpy import save_file

#: Variable domains, heavy and light, of antibodies whose sequences are published (WHO's INN
#: lists): trastuzumab, adalimumab and pembrolizumab to calibrate on, the others to measure on.
_CALIBRATION = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS",
    "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQHYTTPPTFGQGTKVEIK",
    "EVQLVESGGGLVQPGRSLRLSCAASGFTFDDYAMHWVRQAPGKGLEWVSAITWNSGHIDYADSVEGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCAKVSYLSTASSLDYWGQGTLVTVSS",
    "DIQMTQSPSSLSASVGDRVTITCRASQGIRNYLAWYQQKPGKAPKLLIYAASTLQSGVPSRFSGSGSGTDFTLTISSLQPEDVATYYCQRYNRAPYTFGQGTKVEIK",
    "QVQLVQSGVEVKKPGASVKVSCKASGYTFTNYYMYWVRQAPGQGLEWMGGINPSNGGTNFNEKFKNRVTLTTDSSTTTAYMELKSLQFDDTAVYYCARRDYRFDMGFDYWGQGTTVTVSS",
    "EIVLTQSPATLSLSPGERATLSCRASKGVSTSGYSYLHWYQQKPGQAPRLLIYLASYLESGVPARFSGSGSGTDFTLTISSLEPEDFAVYYCQHSRDLPLTFGGGTKVEIK",
)
_EVALUATION = (
    "QVQLVESGGGVVQPGRSLRLDCKASGITFSNSGMHWVRQAPGKGLEWVAVIWYDGSKRYYADSVKGRFTISRDNSKNTLFLQMNSLRAEDTAVYYCATNDDYWGQGTLVTVSS",
    "EIVLTQSPATLSLSPGERATLSCRASQSVSSYLAWYQQKPGQAPRLLIYDASNRATGIPARFSGSGSGTDFTLTISSLEPEDFAVYYCQQSSNWPRTFGQGTKVEIK",
    "EVQLVESGGGLVQPGGSLRLSCAASGYTFTNYGMNWVRQAPGKGLEWVGWINTYTGEPTYAADFKRRFTFSLDTSKSTAYLQMNSLRAEDTAVYYCAKYPHYYGSSHWYFDVWGQGTLVTVSS",
    "DIQMTQSPSSLSASVGDRVTITCSASQDISNYLNWYQQKPGKAPKVLIYFTSSLHSGVPSRFSGSGSGTDFTLTISSLQPEDFATYYCQQYSTVPWTFGQGTKVEIK",
    "QVQLQQPGAELVKPGASVKMSCKASGYTFTSYNMHWVKQTPGRGLEWIGAIYPGNGDTSYNQKFKGKATLTADKSSSTAYMQLSSLTSEDSAVYYCARSTYYGGDWYFNVWGAGTTVTVSA",
    "QIVLSQSPAILSASPGEKVTMTCRASSSVSYIHWFQQKPGSSPKPWIYATSNLASGVPVRFSGSGSGTSYSLTISRVEAEDAATYYCQQWTSNPPTFGGGTKLEIK",
    "QVQLKQSGPGLVQPSQSLSITCTVSGFSLTNYGVHWVRQSPGKGLEWLGVIWSGGNTDYNTPFTSRLSINKDNSKSQVFFKMNSLQSNDTAIYYCARALTYYDYEFAYWGQGTLVTVSA",
    "DILLTQSPVILSVSPGERVSFSCRASQSIGTNIHWYQQRTNGSPRLLIKYASESISGIPSRFSGSGSGTDFTLSINSVESEDIADYYCQQNNNWPTTFGAGTKLELK",
)


@click.command(epilog="Example: python benchmarks/make_trained.py antiberty trained.safetensors")
@click.argument("package", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
def main(package: Path, out: Path) -> None:
    """Run AntiBERTy, whose unpacked wheel is PACKAGE, and write its matrices and inputs to OUT.

    A language model of antibodies: 26 M float32 weights of a BERT, MIT licence. Get it with
    `pip download --no-deps antiberty==0.1.3` and `unzip antiberty-*.whl -d antiberty`. Needs
    torch and transformers. OUT holds of each matrix its weights, `NAME.weight` (rows, k), its
    inputs on some sequences, `NAME.calibration` (tokens, k), and on others, `NAME.inputs`.
    """
    import torch
    from transformers import BertConfig, BertModel

    where = package / "antiberty" / "trained_models"
    names = (where / "vocab.txt").read_text(encoding="utf-8").split()
    ids = {name: index for index, name in enumerate(names)}
    model = BertModel(BertConfig.from_pretrained(where / "AntiBERTy_md_smooth"))
    weights = torch.load(
        where / "AntiBERTy_md_smooth" / "pytorch_model.bin", map_location="cpu", weights_only=True
    )
    prefix = "bert."
    model.load_state_dict(
        {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)},
        strict=False,
    )
    model.eval()
    layers = {
        name: module
        for name, module in model.encoder.named_modules()
        if isinstance(module, torch.nn.Linear)
    }

    def inputs_of(sequences: tuple[str, ...]) -> dict[str, np.ndarray]:
        seen: dict[str, list[np.ndarray]] = {name: [] for name in layers}
        hooks = [
            module.register_forward_pre_hook(
                lambda _module, given, name=name: seen[name].append(given[0][0].numpy().copy())
            )
            for name, module in layers.items()
        ]
        with torch.no_grad():
            for sequence in sequences:
                model(torch.tensor([[ids["[CLS]"], *(ids[c] for c in sequence), ids["[SEP]"]]]))
        for hook in hooks:
            hook.remove()
        return {name: np.concatenate(parts) for name, parts in seen.items()}

    calibration, evaluation = inputs_of(_CALIBRATION), inputs_of(_EVALUATION)
    arrays = {}
    for name, module in layers.items():
        arrays[f"{name}.weight"] = module.weight.detach().numpy()
        arrays[f"{name}.calibration"] = calibration[name]
        arrays[f"{name}.inputs"] = evaluation[name]
    save_file({n: np.ascontiguousarray(a, np.float32) for n, a in arrays.items()}, out)
    click.echo(out)


if __name__ == "__main__":
    main()

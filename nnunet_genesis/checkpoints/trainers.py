"""Names of published trainers whose networks have the operations that their plans, or nnU-Net v1's defaults, say."""

from __future__ import annotations

_AFTER_NNUNETTRAINER_V1 = """
CE CascadeFullRes NoDA V2 V2BraTSRegions V2BraTSRegions_BN V2BraTSRegions_DA3 V2BraTSRegions_DA3_BD
V2BraTSRegions_DA3_BN V2BraTSRegions_DA3_BN_BD V2BraTSRegions_DA4_BN V2BraTSRegions_DA4_BN_BD V2BraTSRegions_DDP
V2BraTSRegions_Dice V2CascadeFullRes V2CascadeFullRes_EducatedGuess V2CascadeFullRes_EducatedGuess2
V2CascadeFullRes_EducatedGuess3 V2CascadeFullRes_lowerLR V2CascadeFullRes_noConnComp V2CascadeFullRes_shorter
V2CascadeFullRes_shorter_lowerLR V2CascadeFullRes_smallerBinStrel V2_2epochs V2_2epochs_dummyLoad
V2_3ConvPerStage V2_3ConvPerStageSameFilters V2_5epochs V2_5epochs_CEnoDS V2_5epochs_dummyLoad
V2_5epochs_dummyLoadCEnoDS V2_5epochs_noDS V2_Adam V2_Adam_ReduceOnPlateau V2_Adam_nnUNetTrainerlr V2_BN V2_DA2
V2_DA3 V2_DA3_BN V2_DA5 V2_DDP V2_DDP_5epochs V2_DDP_5epochs_dummyLoad V2_DP V2_ForceBD V2_ForceSD V2_Loss_CE
V2_Loss_CEGDL V2_Loss_Dice V2_Loss_DiceCE_noSmooth V2_Loss_DiceTopK10 V2_Loss_Dice_LR1en3 V2_Loss_Dice_squared
V2_Loss_DicewithBG V2_Loss_DicewithBG_LR1en3 V2_Loss_MCC V2_Loss_MCCnoBG V2_Loss_TopK10 V2_MMS
V2_NoNormalization V2_NoNormalization_lr1en3 V2_Ranger_lr1en2 V2_Ranger_lr3en3 V2_Ranger_lr3en4
V2_SGD_ReduceOnPlateau V2_SGD_fixedSchedule V2_SGD_fixedSchedule2 V2_SGD_lr1en1 V2_SGD_lr1en3 V2_SegLoss_Focal
V2_allConv3x3 V2_copy1 V2_copy2 V2_copy3 V2_copy4 V2_cycleAtEnd V2_cycleAtEnd2 V2_fp16 V2_fp32 V2_fullEvals
V2_graduallyTransitionFromCEToDice V2_independentScalePerAxis V2_insaneDA V2_lReLU_biasInSegOutput V2_momentum09
V2_momentum095 V2_momentum098 V2_momentum09in2D V2_noDataAugmentation V2_noDeepSupervision V2_noMirroring
V2_reduceMomentumDuringTraining V2_resample33 V2_softDeepSupervision V2_warmup
"""

_AFTER_NNUNETTRAINER_V2 = """
Adam Adam1en3 Adam3en4 Adan Adan1en1 Adan1en3 Adan3en4 AdanCosAnneal BN Benchmark_5epochs
Benchmark_5epochs_noDataLoading CELoss CELoss_5epochs CosAnneal DA5 DA5Segord0 DA5_10epochs DA5ord0
DiceCELoss_noSmooth DiceLoss DiceTopK10Loss NoDA NoDeepSupervision NoMirroring Topk10Loss Topk10LossLS01
VanillaAdam VanillaAdam1en3 VanillaAdam3en4 _100epochs _10epochs _1epoch _2000epochs _2000epochs_NoMirroring
_20epochs _250epochs _250epochs_NoMirroring _4000epochs _4000epochs_NoMirroring _500epochs _50epochs _5epochs
_750epochs _8000epochs _8000epochs_NoMirroring _DASegOrd0 _DASegOrd0_NoMirroring _noDummy2DDA _onlyMirror01
_onlyMirror01_1500ep _onlyMirror01_DA5 _onlyMirror01_DASegOrd0 _probabilisticOversampling
_probabilisticOversampling_010 _probabilisticOversampling_033 _warmup GenesisPretrain GenesisFinetune
"""

NNUNET_V1 = frozenset(f"nnUNetTrainer{name}" for name in ("", *_AFTER_NNUNETTRAINER_V1.split()))
"""Those of nnU-Net 1.7.1 with the usual operations, or with others that the tensors show (batch norm, no norm)."""

NNUNET_V2 = frozenset(f"nnUNetTrainer{name}" for name in ("", *_AFTER_NNUNETTRAINER_V2.split())) | {
    "nnUNet_Trainer_BS8"
}
"""Those of nnU-Net 2.8.1 and of this package; nnUNetTrainerBN changes the norm, and only that."""

PRIMUS = frozenset(
    [f"nnUNet_Primus{kind}{size}_Trainer" for kind in ("_", "V2", "V3") for size in "SBML"]
    + ["nnUNet_Primus_M_Trainer_BS8", "nnUNet_Primus_M_Trainer_BS8_2e4"]
    + ["_Primus_S_96_BS1", "_Primus_B_96_BS1", "_Primus_M_96_BS1", "_Primus_L_48_BS1"]
)
"""Those of nnU-Net 2.8.1 that build a transformer of a published size, whatever network their plans name."""

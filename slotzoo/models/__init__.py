"""The systems of the zoo, one file each, and the functions that create them by name."""

from slotzoo.models import (
    gnm_names as gnm_names,
    savi_names as savi_names,
    slotssm_names as slotssm_names,
    teco_names as teco_names,
)
from slotzoo.models.convs5 import (
    ConvS5Pixels as ConvS5Pixels,
    ConvS5PixelsConfig as ConvS5PixelsConfig,
    ConvS5Tokens as ConvS5Tokens,
    ConvS5TokensConfig as ConvS5TokensConfig,
)
from slotzoo.models.gnm import GNM as GNM
from slotzoo.models.gnm_config import GNMConfig as GNMConfig
from slotzoo.models.kl_vae import KLVAE as KLVAE, KLVAEConfig as KLVAEConfig
from slotzoo.models.objects import ObjectsOutput as ObjectsOutput, TrackOutput as TrackOutput
from slotzoo.models.registry import (
    ModelCard as ModelCard,
    create_model as create_model,
    list_models as list_models,
    model_card as model_card,
    model_config as model_config,
    register as register,
)
from slotzoo.models.savi import (
    SAVi as SAVi,
    SAViConfig as SAViConfig,
    TrackState as TrackState,
)
from slotzoo.models.set_prediction import (
    SlotAttentionSet as SlotAttentionSet,
    SlotAttentionSetConfig as SlotAttentionSetConfig,
)
from slotzoo.models.slate import SLATE as SLATE, SLATEConfig as SLATEConfig
from slotzoo.models.slot_attention import (
    SlotAttentionAutoencoder as SlotAttentionAutoencoder,
    SlotAttentionConfig as SlotAttentionConfig,
)
from slotzoo.models.slotssm import (
    SlotSSM as SlotSSM,
    SlotSSMOutput as SlotSSMOutput,
    SlotSSMState as SlotSSMState,
)
from slotzoo.models.slotssm_config import SlotSSMConfig as SlotSSMConfig
from slotzoo.models.slotssm_tracker import SlotSSMTracker as SlotSSMTracker
from slotzoo.models.statm import STATMConfig as STATMConfig, statm as statm
from slotzoo.models.teco import TECO as TECO
from slotzoo.models.teco_config import TECOConfig as TECOConfig
from slotzoo.models.video import VideoPixels as VideoPixels, VideoTokens as VideoTokens
from slotzoo.models.video_baselines import (
    ConvLSTMPixelsConfig as ConvLSTMPixelsConfig,
    ConvLSTMTokensConfig as ConvLSTMTokensConfig,
    PerformerPixelsConfig as PerformerPixelsConfig,
    PerformerTokensConfig as PerformerTokensConfig,
    S5PixelsConfig as S5PixelsConfig,
    S5TokensConfig as S5TokensConfig,
    TransformerPixelsConfig as TransformerPixelsConfig,
    TransformerTokensConfig as TransformerTokensConfig,
)
from slotzoo.models.vqgan import (
    VQGAN as VQGAN,
    Discriminator as Discriminator,
    VQGANConfig as VQGANConfig,
)

//! Arguments that name a provider: their words are those of `ProviderId::ALL`.

use billhook_core::endpoint::secret::{SecretHolder, SecretKind};
use billhook_core::ids::ProviderId;
use clap::builder::{PossibleValuesParser, TypedValueParser};

/// Parses the word of any provider.
pub(crate) fn provider_parser() -> impl TypedValueParser<Value = ProviderId> {
    PossibleValuesParser::new(ProviderId::words()).try_map(|word| word.parse::<ProviderId>())
}

/// Parses the word of a provider whose signing secret is in this kind of secret.
pub(crate) fn provider_with_secret_in(
    holder: SecretHolder,
) -> impl TypedValueParser<Value = ProviderId> {
    let words = words_with_secret_in(holder);
    PossibleValuesParser::new(words).try_map(|word| word.parse::<ProviderId>())
}

pub(crate) fn words_with_secret_in(holder: SecretHolder) -> Vec<&'static str> {
    let providers = ProviderId::ALL.iter();
    let held = providers.filter(|provider| SecretKind::signing_of(**provider).holder() == holder);
    held.map(|provider| provider.as_str()).collect()
}

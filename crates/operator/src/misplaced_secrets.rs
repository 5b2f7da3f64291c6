//! Finds what stands in the App secret and belongs into the secret of other functions (least privilege): `secrets split`
//! moves it, and `doctor` says that it is there.

use anyhow::Result;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::secrets::load_document;
use billhook_core::endpoint::secret::{SecretHolder, SecretKind};
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;

use crate::session::StackSession;

/// The members of the App secret that belong into another one, each with the provider that signs with it.
pub(crate) async fn list_misplaced_secrets(
    session: &StackSession,
) -> Result<Vec<(ProviderId, SecretKind)>> {
    let (arn, now) = (session.stack.output("AppSecretArn")?, SystemClock.now());
    let mut misplaced = Vec::new();
    for provider in ProviderId::ALL {
        let of = SecretKind::signing_of(*provider);
        if of.holder() == SecretHolder::InboundSecret
            && load_document(&session.secrets, arn, of, now)
                .await?
                .has_secret()
        {
            misplaced.push((*provider, of));
        }
    }
    Ok(misplaced)
}

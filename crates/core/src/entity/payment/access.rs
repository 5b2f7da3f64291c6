//! Download access: whether the application may hand out what an order's customer ordered. Money decides first, an open
//! review second: a charged-back order is disabled and not only locked, even if a review stands.

use crate::entity::payment::status::{OrderStatus, PaymentStatus};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownloadAccess {
    Granted,
    /// Paid, but a person must look first: clearing the review grants it.
    Locked,
    /// There is no payment to deliver for.
    Disabled,
}

/// Decides from the columns of an order's row. None is a missing column, or a word that is not ours.
///
/// A partial refund and an open dispute do not take access away: `paymentStatus` is then still `paid` or `disputed`, and
/// the review that a dispute opens locks the order until somebody clears it.
pub fn decide_download_access(
    status: Option<OrderStatus>,
    payment: Option<PaymentStatus>,
    requires_review: bool,
) -> DownloadAccess {
    let money_is_back = match payment {
        Some(PaymentStatus::Refunded | PaymentStatus::ChargedBack) => true,
        Some(
            PaymentStatus::Unpaid
            | PaymentStatus::PartiallyPaid
            | PaymentStatus::Processing
            | PaymentStatus::Authorized
            | PaymentStatus::Failed
            | PaymentStatus::Paid
            | PaymentStatus::Disputed,
        )
        | None => false,
    };
    match (status, money_is_back, requires_review) {
        (Some(OrderStatus::Completed), false, false) => DownloadAccess::Granted,
        (Some(OrderStatus::Completed), false, true) => DownloadAccess::Locked,
        (Some(OrderStatus::Completed), true, _) => DownloadAccess::Disabled,
        (
            Some(
                OrderStatus::Pending
                | OrderStatus::PaymentFailed
                | OrderStatus::Refunded
                | OrderStatus::Cancelled,
            )
            | None,
            ..,
        ) => DownloadAccess::Disabled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn download_access_depends_on_payment_then_on_review() {
        use DownloadAccess::{Disabled, Granted, Locked};
        for (status, payment, review, expected) in [
            ("completed", "paid", false, Granted),
            ("completed", "disputed", false, Granted),
            ("completed", "", false, Granted),
            ("completed", "paid", true, Locked),
            ("completed", "disputed", true, Locked),
            ("completed", "charged_back", true, Disabled),
            ("completed", "charged_back", false, Disabled),
            ("completed", "refunded", false, Disabled),
            ("refunded", "refunded", false, Disabled),
            ("cancelled", "failed", false, Disabled),
            ("payment_failed", "failed", false, Disabled),
            ("pending", "unpaid", false, Disabled),
            ("pending", "unpaid", true, Disabled),
            ("draft", "paid", false, Disabled),
            ("", "", false, Disabled),
        ] {
            let decided = decide_download_access(
                OrderStatus::parse(status),
                PaymentStatus::parse(payment),
                review,
            );
            assert_eq!(decided, expected, "{status} {payment} {review}");
        }
    }

    #[test]
    fn only_a_completed_order_whose_money_stayed_is_not_disabled() {
        for status in OrderStatus::ALL {
            for payment in PaymentStatus::ALL {
                let decided = decide_download_access(Some(status), Some(payment), false);
                let is_back = [PaymentStatus::Refunded, PaymentStatus::ChargedBack];
                let expected = status == OrderStatus::Completed && !is_back.contains(&payment);
                assert_eq!(decided == DownloadAccess::Granted, expected);
                assert_ne!(decided, DownloadAccess::Locked);
            }
        }
    }
}

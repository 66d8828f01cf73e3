// Package collateral keeps what vendors publish about their hardware: certificates of chips, revocation lists, TCB levels, reference
// measurements. One Cache stands between the verifiers and the places such documents come from.
//
// Rules, in the order they matter:
//
//   - Nothing in the cache is trusted. Verifiers check every signature, each time. The cache only refuses what is evidently not the
//     document that was asked for, so that a proxy's error page does not occupy its place.
//   - A revocation list or an OCSP response is never served after its own nextUpdate, and when it is due for a refresh callers wait
//     for it. TCB info and QE identity may be served past theirs when every source fails, for Options.MaxStale at most: verifiers
//     report that as a claim, and the policy decides. Certificates are never served past their end.
//   - However many callers want one document, it is fetched once. The fetch belongs to the cache, not to the first caller: that one
//     giving up does not fail the others.
//   - What failed is not asked for again at once. A document waits for itself; a source that is down or overloaded waits as a whole, with
//     jitter, and at least as long as it asked for.
//   - Entries survive restarts. A file is complete or ignored; a full disk costs persistence, never an answer.
//
// Sources are tried in order; the error of a document nobody delivered names each source with its reason.
package collateral

package dcap

import (
	"crypto/ecdsa"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
)

// platformClaims are those that need no collateral.
func platformClaims(chain *pckCerts, root *x509.Certificate) map[string]any {
	p := chain.pck
	claims := map[string]any{
		"platform_provider_id": hex.EncodeToString(p.PPID),
		"sgx_type":             sgxType(p.SGXType),
		"root_key_id":          rootKeyID(root),
	}
	if p.SGXType > 0 {
		on := func(flag *bool) bool { return flag != nil && *flag }
		claims["is_dynamic_platform"] = on(p.DynamicPlatform)
		claims["is_cached_keys"] = on(p.CachedKeys)
		claims["is_smt_enabled"] = on(p.SMTEnabled)
	}
	if p.PlatformInstanceID != nil {
		// The certificate holds it little-endian; claims show it as the number it is, as upstream does.
		id := slices.Clone(p.PlatformInstanceID)
		slices.Reverse(id)
		claims["platform_instance_id"] = hex.EncodeToString(id)
	}
	return claims
}

func sgxType(n int) string {
	switch n {
	case 0:
		return "Standard"
	case 1:
		return "Scalable"
	case 2:
		return "Scalable with Integrity"
	}
	return fmt.Sprintf("Unknown (%d)", n)
}

// rootKeyID is the SHA-384 of the root's key as an uncompressed point.
func rootKeyID(root *x509.Certificate) string {
	key, ok := root.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return ""
	}
	point, err := key.Bytes()
	if err != nil {
		return ""
	}
	sum := sha512.Sum384(point)
	return hex.EncodeToString(sum[:])
}

func (j *judgement) addClaims(claims map[string]any, w *windows) {
	claims["tcb_status"] = string(j.status)
	advisories := make([]any, len(j.advisories))
	for i, a := range j.advisories {
		advisories[i] = a
	}
	claims["advisory_ids"] = advisories
	claims["tcb_date"] = rfc3339(j.date)
	claims["tcb_eval_num"] = int64(j.evalNumber)
	claims["pck_crl_num"] = crlNumber(j.pckCRL)
	claims["root_ca_crl_num"] = crlNumber(j.rootCRL)
	claims["earliest_issue_date"] = rfc3339(w.firstIssued)
	claims["latest_issue_date"] = rfc3339(w.lastIssued)
	claims["earliest_expiration_date"] = rfc3339(w.firstExpiry)
	claims["collateral_expiration_status"] = "0"
	claims["collateral_status"] = "current"
	if why := w.expired(); why != "" {
		claims["collateral_expiration_status"] = "1"
		claims["collateral_status"] = "expired: " + why
	}
}

// crlNumber is a list's number as upstream has it, 0 when the list has none. Numbers that no list of Intel's will reach are
// cut to the largest one.
func crlNumber(n *big.Int) int64 {
	switch {
	case n == nil:
		return 0
	case !n.IsInt64():
		return 1<<63 - 1
	}
	return n.Int64()
}

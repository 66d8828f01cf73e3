package tdx

import (
	"encoding/hex"
	"fmt"

	"github.com/cloister/cloister/tee/quote"
)

// quoteClaims are the fields of header and body, each the hexadecimal text of its bytes as stored.
func quoteClaims(q *quote.Quote) map[string]any {
	h, t := q.Header, q.TD
	body := hexed(map[string][]byte{
		"tcb_svn": t.TCBSVN, "mr_seam": t.MRSEAM, "mrsigner_seam": t.MRSignerSEAM, "seam_attributes": t.SEAMAttributes,
		"td_attributes": t.TDAttributes, "xfam": t.XFAM, "mr_td": t.MRTD, "mr_config_id": t.MRConfigID,
		"mr_owner": t.MROwner, "mr_owner_config": t.MROwnerConfig, "report_data": t.ReportData,
	})
	for i, r := range t.RTMR {
		body[fmt.Sprintf("rtmr_%d", i)] = hex.EncodeToString(r)
	}
	if t.TCBSVN2 != nil {
		body["tee_tcb_svn2"] = hex.EncodeToString(t.TCBSVN2)
		body["mr_servicetd"] = hex.EncodeToString(t.MRServiceTD)
	}
	claims := map[string]any{
		"header": hexed(map[string][]byte{
			"version": h.Version, "att_key_type": h.KeyType, "tee_type": h.TEEType, "reserved": h.Reserved,
			"vendor_id": h.VendorID, "user_data": h.UserData,
		}),
		"body": body,
	}
	if q.BodyType != nil {
		claims["type"] = hex.EncodeToString(q.BodyType)
		claims["size"] = hex.EncodeToString(q.BodySize)
	}
	return claims
}

func hexed(fields map[string][]byte) map[string]any {
	out := make(map[string]any, len(fields))
	for name, b := range fields {
		out[name] = hex.EncodeToString(b)
	}
	return out
}

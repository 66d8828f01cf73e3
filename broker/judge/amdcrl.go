package judge

import (
	"fmt"
	"time"

	verifier "github.com/cloister/cloister/broker/verifier/snp"
)

// fault is why the caller's lists are of no use by their dates alone; verifiers of evidence in JSON keep that to themselves.
func (s *amdSources) fault(now time.Time) error {
	for _, crl := range s.crls {
		if now.Before(crl.ThisUpdate) || now.After(crl.NextUpdate) {
			return fmt.Errorf("%w valid from %s to %s", verifier.ErrCRLDate, crl.ThisUpdate.UTC().Format(time.RFC3339),
				crl.NextUpdate.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

package refvalue

import (
	"crypto/sha256"
	"fmt"

	"github.com/pelletier/go-toml/v2"
)

func registers() map[int]string {
	return map[int]string{0: "tpm_pcr00", 4: "tpm_pcr04", 7: "tpm_pcr07", 8: "tpm_init_data", 9: "tpm_pcr09"}
}

// initdataEvent is what the guest extends into PCR 8 before it uses any of
// the document.
func initdataEvent(doc []byte) (Event, error) {
	var d struct {
		Algorithm string `toml:"algorithm"`
	}
	if err := toml.Unmarshal(doc, &d); err != nil {
		return Event{}, fmt.Errorf("initdata: %w", err)
	}
	if d.Algorithm != "sha256" {
		return Event{}, fmt.Errorf("initdata has algorithm %q; a TPM takes sha256 only", d.Algorithm)
	}
	return newEvent(8, "initdata", sha256.Sum256(doc), "digest of the initdata document, extended by the guest"), nil
}

package judge

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/verifier"
)

// Name is the one name of a kind of evidence, one of TEEs, for the spellings in use: upper case, underscores, the vendor before it.
// What it does not know comes back as it is.
func Name(tee string) string {
	name := verifier.Canonical(strings.ReplaceAll(strings.ToLower(strings.TrimSpace(tee)), "_", "-"))
	switch name {
	case "sev-snp", "sevsnp", "amd-sev-snp", "amd-snp":
		return "snp"
	case "intel-tdx":
		return "tdx"
	case "intel-sgx":
		return "sgx"
	case "azure-snp-vtpm":
		return "az-snp-vtpm"
	case "azure-tdx-vtpm":
		return "az-tdx-vtpm"
	case "arm-cca":
		return "cca"
	case "hygon-csv":
		return "csv"
	case "hygon-dcu":
		return "hygondcu"
	case "ibm-se":
		return "se"
	case "nvidia-gpu", "nvidia-switch":
		return "nvidia"
	case "ccel", "event-log":
		return "eventlog"
	}
	if _, known := judges()[name]; known {
		return name
	}
	return tee
}

// ParseTime reads a time; without a zone it is in UTC, without an hour it is midnight.
func ParseTime(text string) (time.Time, error) {
	for _, layout := range []string{"2006-01-02T15:04:05", "2006-01-02 15:04:05", time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Parse(time.RFC3339, text)
}

// ParseBytes reads hex digits, with 0x before them or without, or base64 of either alphabet. Digits that are both are hex.
func ParseBytes(text string) ([]byte, error) {
	t := strings.TrimSpace(text)
	digits := strings.TrimPrefix(strings.TrimPrefix(t, "0x"), "0X")
	if b, err := hex.DecodeString(digits); err == nil {
		return b, nil
	}
	t = strings.TrimRight(strings.NewReplacer("-", "+", "_", "/").Replace(t), "=")
	b, err := base64.RawStdEncoding.Strict().DecodeString(t)
	if err != nil {
		return nil, fmt.Errorf("%.80q is neither hex nor base64", text)
	}
	return b, nil
}

package attest_test

import (
	"encoding/base64"
	"strconv"
)

func rawURL(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
func itoa(i int64) string    { return strconv.FormatInt(i, 10) }

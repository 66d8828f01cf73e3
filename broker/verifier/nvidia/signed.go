package nvidia

import (
	"fmt"

	"github.com/cloister/cloister/broker/xmlsig"
	"github.com/cloister/cloister/tee/rim"
)

// signedContent reads a manifest whose signature is that of its certificates. Whether those lead to NVIDIA is checked
// apart, so that the two outcomes can be told apart.
func signedContent(doc []byte, signer chain) (*rim.Content, error) {
	key, err := signer.key()
	if err != nil {
		return nil, err
	}
	signed, err := xmlsig.Verify(doc, key, fmt.Sprintf("%q", signer.leaf().Subject))
	if err != nil {
		return nil, err
	}
	return rim.ParseContent(signed)
}

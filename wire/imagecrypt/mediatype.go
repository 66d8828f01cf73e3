// Package imagecrypt is the format of encrypted image layers: media types and
// annotations of a layer, the cipher over its bytes, and the packet that wraps its
// key for one key encryption key. It is compatible with ocicrypt's layer cipher
// and with the annotation packets of Confidential Containers.
//
// Encryption hides a layer and its HMAC finds damage. It does not say who made the
// layer: that is the business of signatures.
package imagecrypt

import (
	"fmt"
	"strings"
)

// Annotations of an encrypted layer's descriptor.
const (
	// AnnotationPublicOptions is standard base64 of PublicOptions as JSON.
	AnnotationPublicOptions = "org.opencontainers.image.enc.pubopts"
	// AnnotationKeysPrefix precedes a key provider's name; the value is standard
	// base64 of a Packet as JSON, several are separated by commas.
	AnnotationKeysPrefix = "org.opencontainers.image.enc.keys.provider."
	// AnnotationKeys is the annotation of the provider that is written here.
	AnnotationKeys = AnnotationKeysPrefix + ProviderName
	// ProviderName is the provider's name in annotations.
	ProviderName = "attestation-agent"
)

const (
	layer            = "application/vnd.oci.image.layer.v1.tar"
	nondistributable = "application/vnd.oci.image.layer.nondistributable.v1.tar"
	encryptedSuffix  = "+encrypted"
)

// EncryptedMediaType is the media type of a layer after encryption.
func EncryptedMediaType(plain string) (string, error) {
	switch plain {
	case layer, layer + "+gzip", layer + "+zstd", nondistributable, nondistributable + "+gzip":
		return plain + encryptedSuffix, nil
	}
	return "", fmt.Errorf("media type %q is no image layer that can be encrypted", plain)
}

// PlainMediaType is the media type of an encrypted layer after decryption.
func PlainMediaType(encrypted string) (string, error) {
	plain, ok := strings.CutSuffix(encrypted, encryptedSuffix)
	if _, err := EncryptedMediaType(plain); !ok || err != nil {
		return "", fmt.Errorf("media type %q is no encrypted image layer", encrypted)
	}
	return strings.Replace(plain, nondistributable, layer, 1), nil
}

// IsEncrypted tells whether a media type claims to be an encrypted layer. It is
// true for unknown ones as well, so that they fail instead of passing as plain.
func IsEncrypted(mediaType string) bool {
	return strings.HasSuffix(mediaType, encryptedSuffix)
}

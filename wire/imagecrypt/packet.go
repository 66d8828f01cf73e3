package imagecrypt

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

const (
	// PacketVersion is the only version of a packet.
	PacketVersion = "0.1.0"
	// ProviderKBS says that a packet's key encryption key is a broker's resource.
	ProviderKBS = "kbs"
	// WrapA256GCM is the only way a key is wrapped here.
	WrapA256GCM = "A256GCM"

	gcmNonceSize  = 12
	maxPackets    = 16
	maxPacketSize = 64 << 10
)

// Packet wraps a layer's private options for one key encryption key.
type Packet struct {
	Version string `json:"version,omitempty"`
	// KID names the key encryption key: a resource URI for the provider "kbs".
	KID              string          `json:"kid"`
	WrappedData      []byte          `json:"wrapped_data"`
	Provider         string          `json:"provider,omitempty"`
	IV               []byte          `json:"iv,omitempty"`
	WrapType         string          `json:"wrap_type,omitempty"`
	ProviderSettings json.RawMessage `json:"provider_settings,omitempty"`
	Annotations      json.RawMessage `json:"annotations,omitempty"`
}

// ParsePacket reads a packet's JSON text and fills in the defaults. Packets of the
// first format, which had fewer members, are read as well.
func ParsePacket(text []byte) (Packet, error) {
	if len(text) > maxPacketSize {
		return Packet{}, fmt.Errorf("reading a key packet: %d bytes exceed the limit of %d", len(text), maxPacketSize)
	}
	var p Packet
	if err := json.Unmarshal(text, &p); err != nil {
		return Packet{}, fmt.Errorf("reading a key packet: %w", err)
	}
	if p.Version == "" {
		p.Version = PacketVersion
	}
	if p.Provider == "" {
		p.Provider = ProviderKBS
	}
	switch {
	case p.Version != PacketVersion:
		return Packet{}, fmt.Errorf("reading a key packet: version is %q, expected %q", p.Version, PacketVersion)
	case p.KID == "":
		return Packet{}, errors.New("reading a key packet: kid is missing")
	case len(p.WrappedData) == 0:
		return Packet{}, errors.New("reading a key packet: wrapped_data is missing")
	}
	return p, nil
}

// EncodePackets is the annotation's value for packets.
func EncodePackets(packets ...Packet) (string, error) {
	values := make([]string, len(packets))
	for i, p := range packets {
		text, err := json.Marshal(p)
		if err != nil {
			return "", fmt.Errorf("writing a key packet: %w", err)
		}
		values[i] = base64.StdEncoding.EncodeToString(text)
	}
	return strings.Join(values, ","), nil
}

// DecodePackets reads an annotation's value: packets to try in order.
func DecodePackets(value string) ([]Packet, error) {
	if value == "" {
		return nil, errors.New("reading key packets: the annotation is empty")
	}
	if n := strings.Count(value, ",") + 1; n > maxPackets {
		return nil, fmt.Errorf("reading key packets: %d exceed the limit of %d", n, maxPackets)
	}
	var packets []Packet
	for part := range strings.SplitSeq(value, ",") {
		if n := base64.StdEncoding.DecodedLen(len(part)); n > maxPacketSize+2 {
			return nil, fmt.Errorf("reading a key packet: %d bytes exceed the limit of %d", n, maxPacketSize)
		}
		text, err := base64.StdEncoding.DecodeString(part)
		if err != nil {
			return nil, fmt.Errorf("reading a key packet: %w", err)
		}
		p, err := ParsePacket(text)
		if err != nil {
			return nil, err
		}
		packets = append(packets, p)
	}
	return packets, nil
}

// EncodePublicOptions is the annotation's value for public options.
func EncodePublicOptions(o PublicOptions) (string, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return "", fmt.Errorf("writing public options of a layer: %w", err)
	}
	return base64.StdEncoding.EncodeToString(text), nil
}

// DecodePublicOptions reads the annotation's value.
func DecodePublicOptions(value string) (PublicOptions, error) {
	if n := base64.StdEncoding.DecodedLen(len(value)); n > maxOptionsSize+2 {
		return PublicOptions{}, fmt.Errorf("reading public options of a layer: %d bytes exceed the limit of %d", n, maxOptionsSize)
	}
	text, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		return PublicOptions{}, fmt.Errorf("reading public options of a layer: %w", err)
	}
	return ParsePublicOptions(text)
}

// WrapPLBCO wraps private options (ocicrypt calls them PLBCO) with the key
// encryption key kek, which kid names.
func WrapPLBCO(kek []byte, kid string, priv PrivateOptions) (Packet, error) {
	aead, err := keyCipher(kek)
	if err != nil {
		return Packet{}, fmt.Errorf("wrapping a layer's key: %w", err)
	}
	text, err := json.Marshal(priv)
	if err != nil {
		return Packet{}, errors.New("wrapping a layer's key: the options cannot be written")
	}
	defer clear(text)
	iv := make([]byte, gcmNonceSize)
	rand.Read(iv)
	return Packet{
		Version: PacketVersion, KID: kid, Provider: ProviderKBS, WrapType: WrapA256GCM,
		IV: iv, WrappedData: aead.Seal(nil, iv, text, nil),
	}, nil
}

// UnwrapPLBCO recovers the private options from a packet of the provider "kbs".
// The unauthenticated wrap type A256CTR is refused: no tool can produce it, and
// accepting it would let a GCM packet be changed unnoticed.
func UnwrapPLBCO(p Packet, kek []byte) (PrivateOptions, error) {
	if p.Provider != ProviderKBS && p.Provider != "" {
		return PrivateOptions{}, fmt.Errorf("unwrapping a layer's key: provider is %q, expected %q", p.Provider, ProviderKBS)
	}
	if p.WrapType != WrapA256GCM {
		return PrivateOptions{}, fmt.Errorf("unwrapping a layer's key: wrap_type is %q, expected %q", p.WrapType, WrapA256GCM)
	}
	if len(p.IV) != gcmNonceSize {
		return PrivateOptions{}, fmt.Errorf("unwrapping a layer's key: iv has %d bytes, expected %d", len(p.IV), gcmNonceSize)
	}
	aead, err := keyCipher(kek)
	if err != nil {
		return PrivateOptions{}, fmt.Errorf("unwrapping a layer's key: %w", err)
	}
	text, err := aead.Open(nil, p.IV, p.WrappedData, nil)
	if err != nil {
		return PrivateOptions{}, fmt.Errorf("unwrapping a layer's key: %s is not the key it was wrapped with, or the packet is damaged", p.KID)
	}
	defer clear(text)
	return ParsePrivateOptions(text)
}

func keyCipher(kek []byte) (cipher.AEAD, error) {
	if len(kek) != keySize {
		return nil, fmt.Errorf("key encryption key has %d bytes, expected %d", len(kek), keySize)
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

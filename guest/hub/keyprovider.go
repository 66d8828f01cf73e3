package hub

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/cloister/cloister/wire/imagecrypt"
)

const maxKeyRequest = 256 << 10

// byteList is bytes as both families of ocicrypt write them: base64 text (Go)
// or an array of numbers (Rust). It is written as an array, which both read.
type byteList []byte

func (b byteList) MarshalJSON() ([]byte, error) {
	numbers := make([]uint16, len(b)) // a []uint8 would become base64
	for i, v := range b {
		numbers[i] = uint16(v)
	}
	return json.Marshal(numbers)
}

func (b *byteList) UnmarshalJSON(text []byte) error {
	if len(text) > 0 && text[0] == '[' {
		var numbers []uint16
		if err := json.Unmarshal(text, &numbers); err != nil {
			return err
		}
		out := make([]byte, len(numbers))
		for i, n := range numbers {
			if n > 255 {
				return fmt.Errorf("%d is not a byte", n)
			}
			out[i] = byte(n)
		}
		*b = out
		return nil
	}
	return json.Unmarshal(text, (*[]byte)(b))
}

type keyRequest struct {
	Op     string `json:"op"`
	Unwrap struct {
		Annotation byteList `json:"annotation"`
	} `json:"keyunwrapparams"`
}

type keyResponse struct {
	Results struct {
		OptsData byteList `json:"optsdata"`
	} `json:"keyunwrapresults"`
}

// parseKeyRequest reads an ocicrypt key provider request to unwrap a key.
func parseKeyRequest(input []byte) (imagecrypt.Packet, error) {
	if len(input) > maxKeyRequest {
		return imagecrypt.Packet{}, fmt.Errorf("reading the key request: %d bytes, expected at most %d", len(input), maxKeyRequest)
	}
	var req keyRequest
	if err := json.Unmarshal(input, &req); err != nil {
		return imagecrypt.Packet{}, fmt.Errorf("reading the key request: %w", err)
	}
	if req.Op != "keyunwrap" {
		return imagecrypt.Packet{}, fmt.Errorf("reading the key request: op is %q, expected keyunwrap", req.Op)
	}
	return imagecrypt.ParsePacket(req.Unwrap.Annotation)
}

// unwrapKey recovers a layer's private options with the key encryption key that
// the packet names.
func (h *Hub) unwrapKey(ctx context.Context, packet imagecrypt.Packet) ([]byte, error) {
	kek, err := h.Resource(ctx, packet.KID)
	if err != nil {
		return nil, fmt.Errorf("unwrapping an image key: %w", err)
	}
	private, err := imagecrypt.UnwrapPLBCO(packet, kek)
	clear(kek)
	if err != nil {
		return nil, fmt.Errorf("unwrapping an image key: %w", err)
	}
	opts, err := json.Marshal(private)
	if err != nil {
		return nil, fmt.Errorf("unwrapping an image key: %w", err)
	}
	var out keyResponse
	out.Results.OptsData = opts
	return json.Marshal(out)
}

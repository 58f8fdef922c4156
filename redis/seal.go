package redis

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
)

// minKeyBytes is what an encryption key must have at least. It is not a
// password that somebody remembers, but 32 random bytes as text.
const minKeyBytes = 32

// A sealed entry is the format's version, the id of the encryption key, a
// random nonce, and what AES-256-GCM makes of the entry. The first three are
// the entry's version, as Store.Acquire calls it.
const (
	format      = 1
	keyIDBytes  = 4
	nonceBytes  = 12
	headerBytes = 1 + keyIDBytes
	prefixBytes = headerBytes + nonceBytes
)

// sealer makes names and entries unreadable for anyone with access to the store,
// and detects changes.
type sealer struct {
	header  [headerBytes]byte
	names   []byte // the key that names are made with
	entries []byte // the secret that each name's own key is derived from
}

func newSealer(key string) (*sealer, error) {
	if len(key) < minKeyBytes {
		return nil, fmt.Errorf("it has %d bytes, which can be guessed: make one of at least %d with openssl rand -base64 32", len(key), minKeyBytes)
	}
	prk, err := hkdf.Extract(sha256.New, []byte(key), []byte("viewer_session"))
	if err != nil {
		return nil, err
	}
	expand := func(purpose string, length int) []byte {
		derived, expandErr := hkdf.Expand(sha256.New, prk, purpose, length)
		err = errors.Join(err, expandErr)
		return derived
	}
	s := &sealer{names: expand("names", sha256.Size), entries: expand("entries", sha256.Size)}
	s.header[0] = format
	copy(s.header[1:], expand("id", keyIDBytes))
	return s, err
}

// name is what a token's name becomes in the store: the same for all gateways
// with the same key, and nothing that could be turned back or guessed.
func (s *sealer) name(name string) string {
	mac := hmac.New(sha256.New, s.names)
	mac.Write([]byte(name))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// aead is the cipher for the entries under one name. Each name has a key of
// its own, so that random nonces do not run out however many entries a fleet
// writes.
func (s *sealer) aead(sealedName string) (cipher.AEAD, error) {
	key, err := hkdf.Expand(sha256.New, s.entries, sealedName, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// associated is what an entry is bound to, in addition to its key.
func (s *sealer) associated(sealedName string) []byte {
	return append(s.header[:], sealedName...)
}

func (s *sealer) seal(sealedName string, entry []byte) ([]byte, error) {
	aead, err := s.aead(sealedName)
	if err != nil {
		return nil, err
	}
	sealed := slices.Grow(append([]byte(nil), s.header[:]...), nonceBytes+len(entry)+aead.Overhead())[:prefixBytes]
	rand.Read(sealed[headerBytes:]) // never fails
	return aead.Seal(sealed, sealed[headerBytes:], entry, s.associated(sealedName)), nil
}

// open returns the entry, if it was sealed under this name with this key.
func (s *sealer) open(sealedName string, sealed []byte) ([]byte, error) {
	if len(sealed) < prefixBytes || [headerBytes]byte(sealed) != s.header {
		return nil, errors.New("it was not sealed with this key")
	}
	aead, err := s.aead(sealedName)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, sealed[headerBytes:prefixBytes], sealed[prefixBytes:], s.associated(sealedName))
}

// versionOf is a sealed entry's version.
func versionOf(sealed []byte) string { return string(sealed[:min(prefixBytes, len(sealed))]) }

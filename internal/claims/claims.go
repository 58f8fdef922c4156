// Package claims turns a route's token options into what one request asks the
// API for, and into the key under which its token is cached.
package claims

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/dws"
)

// Claims are what a token is to say, and everything else that makes two tokens
// different but for the API key. They are resolved once per request; no
// placeholder is left in them.
type Claims struct {
	dws.Request

	VaryBy []string // further parts of the cache key, not sent

	// MinRemaining decides when a cached token is renewed. It is not part of
	// the key: a token does not differ by how long it will be used.
	MinRemaining time.Duration

	// emptyGuard is a template of VaryBy that came out empty, if nothing but
	// VaryBy tells users apart.
	emptyGuard string

	// staticKey is the key's part that is the same for every request, if it
	// could be prepared.
	staticKey []byte
}

// SetPermissions replaces the permissions.
func (c *Claims) SetPermissions(permissions []string) {
	c.Permissions, c.staticKey = permissions, nil
}

// Unguarded returns an error if the claims permit more than reading, or it is not
// known what they permit, and nothing tells users apart: a vary_by that came out
// empty is no ground for it.
func (c *Claims) Unguarded() error {
	switch {
	case c.emptyGuard == "" || c.UserID != "":
		return nil
	case c.AppProvided:
		return fmt.Errorf("vary_by %s is empty, and it is what allows app_provided", c.emptyGuard)
	case slices.ContainsFunc(c.Permissions, func(name string) bool { return name != "read" }):
		return fmt.Errorf("vary_by %s is empty, and it is what allows permissions beyond read", c.emptyGuard)
	default:
		return nil
	}
}

// AppendKey appends the cache key. Every field carries its length, so that no
// two different claims have the same key.
func (c *Claims) AppendKey(key []byte) []byte {
	key = AppendField(key, c.DocumentID) // first, where DocumentOf finds it
	if c.staticKey != nil {
		key = append(key, c.staticKey...)
	} else {
		key = c.appendStaticKey(key)
	}
	key = AppendField(key, c.UserID)
	key = binary.AppendUvarint(key, uint64(len(c.VaryBy)))
	for _, value := range c.VaryBy {
		key = AppendField(key, value)
	}
	return key
}

// DocumentOf returns the document's id in a key that AppendKey made.
func DocumentOf(key string) string {
	length, n := binary.Uvarint([]byte(key[:min(len(key), binary.MaxVarintLen64)]))
	return key[n : n+int(length)] //nolint:gosec // it was an int
}

func (c *Claims) appendStaticKey(key []byte) []byte {
	key = binary.AppendVarint(key, int64(c.TTL))
	key = AppendField(key, c.Request.Claims)
	key = AppendField(key, c.DocumentClaims)
	if c.AppProvided {
		key = binary.AppendUvarint(key, math.MaxUint64) // no number of permissions
	}
	key = binary.AppendUvarint(key, uint64(len(c.Permissions)))
	for _, permission := range c.Permissions {
		key = AppendField(key, permission)
	}
	return key
}

// AppendField appends a field with its length in front.
func AppendField(key []byte, field string) []byte {
	return append(binary.AppendUvarint(key, uint64(len(field))), field...)
}

//go:build unix

package redis

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/redistest"
)

// benchmarkStore is a store on a server of its own, without a test's checks.
func benchmarkStore(b *testing.B) (*Store, *redistest.Server) {
	b.Helper()
	server := redistest.Start(b)
	config, err := json.Marshal(&Store{Address: []string{server.Address}, EncryptionKey: "{env.TEST_ENCRYPTION_KEY}", Timeout: caddy.Duration(5 * time.Second)})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	b.Cleanup(cancel)
	mod, err := ctx.LoadModuleByID("http.handlers.viewer_session.stores.redis", config)
	if err != nil {
		b.Fatal(err)
	}
	return mod.(*Store), server
}

// benchmarkEntry is as long as that of a token of 900 bytes.
var benchmarkEntry = []byte(strings.Repeat("x", 980))

// One look-up that finds an entry, as every gateway does once per renewal.
func BenchmarkAcquireHit(b *testing.B) {
	s, _ := benchmarkStore(b)
	ctx := b.Context()
	for i := range 1000 {
		if err := s.Put(ctx, strconv.Itoa(i), "", benchmarkEntry, time.Hour); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("serial", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if got, err := s.Acquire(ctx, strconv.Itoa(i%1000), "", time.Minute); err != nil || got.Entry == nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("parallel", func(b *testing.B) {
		var next atomic.Int64
		b.SetParallelism(16)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if got, err := s.Acquire(ctx, strconv.FormatInt(next.Add(1)%1000, 10), "", time.Minute); err != nil || got.Entry == nil {
					b.Error(err)
					return
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
	})
}

// A look-up that gets the lock, and the put after it: what a mint costs the store.
func BenchmarkLockAndPut(b *testing.B) {
	s, _ := benchmarkStore(b)
	ctx := b.Context()
	for i := 0; b.Loop(); i++ {
		got, err := s.Acquire(ctx, fmt.Sprint("cold", i), "", time.Minute)
		if err != nil || got.Lock == "" {
			b.Fatal(err)
		}
		if err := s.Put(ctx, fmt.Sprint("cold", i), got.Lock, benchmarkEntry, time.Hour); err != nil {
			b.Fatal(err)
		}
	}
}

// What an entry takes of the server's memory, by its own account.
func BenchmarkMemory(b *testing.B) {
	s, server := benchmarkStore(b)
	used := func() int {
		_, after, _ := strings.Cut(server.Must("INFO", "memory"), "used_memory:")
		number, _, _ := strings.Cut(after, "\r")
		bytes, err := strconv.Atoi(number)
		if err != nil {
			b.Fatal(err)
		}
		return bytes
	}
	const entries = 20_000
	before := used()
	for b.Loop() {
		for i := range entries {
			if err := s.Put(b.Context(), strconv.Itoa(i), "", benchmarkEntry, time.Hour); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(used()-before)/entries, "server-B/entry")
}

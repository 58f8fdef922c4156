package redis

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/sony/gobreaker/v2"

	viewersession "github.com/viewersession/caddy-viewer-session"
)

// client is connections with their circuit breakers.
type client struct {
	redis.UniversalClient
	timeout time.Duration

	// inUse is held for reading during an operation, and for writing to close.
	inUse  sync.RWMutex
	closed bool

	// A Cluster has a breaker for each node, by address, so that one node
	// which is down does not keep the others from being asked.
	breaker *gobreaker.CircuitBreaker[any]
	nodes   sync.Map
}

func newBreaker() *gobreaker.CircuitBreaker[any] {
	return gobreaker.NewCircuitBreaker[any](gobreaker.Settings{
		Timeout:      openFor,
		ReadyToTrip:  func(counts gobreaker.Counts) bool { return counts.ConsecutiveFailures >= failuresToOpen },
		IsSuccessful: alive,
	})
}

// alive reports whether the server can go on being asked. One that cannot
// write at the moment still answers look-ups.
func alive(err error) bool {
	return err == nil || redis.IsOOMError(err) || redis.IsReadOnlyError(err) || redis.IsNoReplicasError(err) ||
		redis.HasErrorPrefix(err, "MISCONF")
}

// retired are clients of previous configs that are still open, the oldest first.
var retired struct {
	sync.Mutex
	clients []*client
}

// retire closes the client after a while, or as soon as others have retired
// after it.
func (c *client) retire() {
	retired.Lock()
	defer retired.Unlock()
	retired.clients = append(retired.clients, c)
	for len(retired.clients) > maxRetired {
		go retired.clients[0].shut() // ends with the operations under way
		retired.clients = retired.clients[1:]
	}
	time.AfterFunc(closeAfter, func() {
		retired.Lock()
		retired.clients = slices.DeleteFunc(retired.clients, func(other *client) bool { return other == c })
		retired.Unlock()
		c.shut()
	})
}

// shut closes the client when no operation is under way.
func (c *client) shut() {
	c.inUse.Lock()
	defer c.inUse.Unlock()
	if !c.closed {
		c.closed = true
		_ = c.Close()
	}
}

// use runs an operation, unless the client has been closed.
func (c *client) use(operation func() (any, error)) (any, error) {
	c.inUse.RLock()
	defer c.inUse.RUnlock()
	if c.closed {
		return nil, viewersession.ErrStoreUnavailable
	}
	return operation()
}

// do runs one operation on the key, unless its server is known to be down.
func (c *client) do(ctx context.Context, key string, operation func(ctx context.Context) (any, error)) (any, error) {
	return c.use(func() (any, error) { return c.doOpen(ctx, key, operation) })
}

func (c *client) doOpen(ctx context.Context, key string, operation func(ctx context.Context) (any, error)) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	breaker := c.breaker
	if cluster, ok := c.UniversalClient.(*redis.ClusterClient); ok {
		node, err := run(breaker, func() (any, error) { return cluster.MasterForKey(ctx, key) })
		if err != nil {
			return nil, err
		}
		address := node.(*redis.Client).Options().Addr
		ofNode, ok := c.nodes.Load(address)
		if !ok {
			ofNode, _ = c.nodes.LoadOrStore(address, newBreaker())
		}
		breaker = ofNode.(*gobreaker.CircuitBreaker[any])
	}
	return run(breaker, func() (any, error) { return operation(ctx) })
}

func run(breaker *gobreaker.CircuitBreaker[any], operation func() (any, error)) (any, error) {
	result, err := breaker.Execute(operation)
	if _, moved := redis.IsMovedError(err); moved {
		err = fmt.Errorf("%w; the server is a node of a Cluster: write cluster", err)
	}
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return nil, viewersession.ErrStoreUnavailable
	}
	return result, err
}

// tryOut does what a mint does, so that a mistake shows when the config loads.
func (s *Store) tryOut(ctx context.Context) error {
	name := rand.Text()
	got, err := s.Acquire(ctx, name, "", time.Second)
	if err != nil {
		return err
	}
	return s.Release(ctx, name, got.Lock)
}

//go:build !race

package viewersession

const raceDetector = false

//go:build race

package viewersession

const raceDetector = true

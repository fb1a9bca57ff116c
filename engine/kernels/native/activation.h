// The gate functions of an MLP. The numbers are those of engine/kernels/linear.py.
#pragma once
#include "vector.h"

enum Activation : int { kNone = 0, kSilu = 1, kGeluTanh = 2, kGelu = 3 };

// erf to 1.5e-7 absolute (Abramowitz and Stegun 7.1.26).
inline Vec erf(Vec x) {
    Vec positive = select((VecI)(x < Vec{}), -x, x);
    Vec t = 1.0f / (1.0f + positive * 0.3275911f);
    Vec p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    Vec y = 1.0f - p * t * exp(-positive * positive);
    return select((VecI)(x < Vec{}), -y, y);
}

inline Vec activate(int activation, Vec x) {
    switch (activation) {
        case kSilu: return x / (1.0f + exp(-x));
        case kGeluTanh: return 0.5f * x * (1.0f + tanh((x + x * x * x * 0.044715f) * 0.79788456f));
        case kGelu: return 0.5f * x * (1.0f + erf(x * 0.70710678f));
        default: return x;
    }
}

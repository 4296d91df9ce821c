// The fields of the structs that Python fills in, by name and in order: engine.py asks for them (`layout`).
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "products.hpp"
#include "sequence.hpp"
#include "training.hpp"

namespace bnn {

// BNN_FIELDS(Struct, a, b, ...): text "Struct:<bytes> a:<offset> b:<offset> ...".
#define BNN_PARENTHESES ()
#define BNN_REPEAT(...) BNN_REPEAT16(BNN_REPEAT16(BNN_REPEAT16(BNN_REPEAT16(__VA_ARGS__))))  // 64 fields
#define BNN_REPEAT16(...) BNN_REPEAT4(BNN_REPEAT4(BNN_REPEAT4(BNN_REPEAT4(__VA_ARGS__))))
#define BNN_REPEAT4(...) BNN_REPEAT1(BNN_REPEAT1(BNN_REPEAT1(BNN_REPEAT1(__VA_ARGS__))))
#define BNN_REPEAT1(...) __VA_ARGS__
#define BNN_NEXT() BNN_EACH
#define BNN_EACH(Struct, first, ...) \
  + " " #first ":" + std::to_string(offsetof(Struct, first)) __VA_OPT__(BNN_NEXT BNN_PARENTHESES(Struct, __VA_ARGS__))
#define BNN_FIELDS(Struct, ...) \
  if (name == #Struct) return #Struct ":" + std::to_string(sizeof(Struct)) BNN_REPEAT(BNN_EACH(Struct, __VA_ARGS__))

// Empty for a struct that is not known.
inline std::string layout(std::string_view name) {
  BNN_FIELDS(Conv, isa, threads, batch, height, width, channels, groups, outputs, kernel_h, kernel_w, out_h, out_w, stride_h,
             stride_w, pad_h, pad_w, dilation_h, dilation_w, pad_value, transposed, bytes, is_signed);
  BNN_FIELDS(Fused, width, out_groups, act, dtype, shortcut_dtype, scale, bias, gamma, slope, zeta, threshold, shortcut, stream,
             words, stream_first, out_scale, out_zero, shortcut_width, fold);
  BNN_FIELDS(Quantizing, count, dtype, out_dtype, x, scale, zero, y);
  BNN_FIELDS(Signs, width, out_groups, threshold, flip, words);
  BNN_FIELDS(Packing, pixels, channels, groups, dtype, plane, x, threshold, words);
  BNN_FIELDS(Downsample, batch, height, width, channels, outputs, pool, dtype, x, weight, bias, y);
  BNN_FIELDS(Pool, images, height, width, channels, fold, out_h, out_w, dtype, largest, rows, columns, x, shortcut, y);
  BNN_FIELDS(Planes, images, pixels, channels, bytes, x, y);
  BNN_FIELDS(Concat, pixels, channels, dtype, maps, widths[0], widths[1], widths[2], widths[3], widths[4], widths[5], widths[6],
             widths[7], x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], y);
  BNN_FIELDS(WeightedSum, images, height, width, channels, dtype, maps, spread[0], spread[1], spread[2], spread[3], spread[4],
             spread[5], spread[6], spread[7], gate_spread, x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], gate, weight);
  BNN_FIELDS(Windows, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, out_h, out_w);
  BNN_FIELDS(Stem, batch, channels, height, width, image_step, channel_step, row_step, pixel_step, dtype, outputs, kernel_h,
             kernel_w, stride_h, stride_w, pad_h, pad_w, out_h, out_w, pool_h, pool_w, pool_stride_h, pool_stride_w, pool_pad_h,
             pool_pad_w, pooled_h, pooled_w, x, weight);
  BNN_FIELDS(Lstm, threads, steps, batch, directions, units, outputs, inputs, integer_x, gates, sign_candidate, cell_readout,
             and_feedback, integer_cell, normalize, eps, x, weight, scale, scale_x, bias, threshold, h_first, cell_first, lengths,
             h, bits, h_last, cell_last);
  BNN_FIELDS(Attention, threads, batch, heads, queries, keys, features, values, planes, mask_batch, mask_queries, table_heads,
             rules, limit, table, scale, q, k, v, mask, y);
  BNN_FIELDS(Normalized, rows, channels, dtype, x, mean, std, threshold, flip, words);
  BNN_FIELDS(Operand, threads, samples, rows, channels, groups, limit, eps, x, shift, words, inside, statistics);
  BNN_FIELDS(NormSums, threads, conv, words, prepared, sums, totals);
  BNN_FIELDS(NormForward, threads, rows, outputs, width, act, frozen, eps, momentum, sums, totals, scale, weight, bias, shortcut, gamma,
             slope, zeta, running_mean, running_var, statistics, y, inside);
  BNN_FIELDS(NormBackward, threads, rows, outputs, width, act, frozen, dtype, sums, scale, weight, bias, shortcut, gamma, slope,
             statistics, inside, grad, d_input, d_sums, d_scale, d_weight, d_bias, d_gamma, d_slope, d_zeta);
  BNN_FIELDS(SignBackward, threads, samples, rows, channels, dtype, peak, steepness, limit, grad, x, inside, factor, shift,
             statistics, residual, residual_inside, d_x, d_shift);
  BNN_FIELDS(SignProducts, threads, conv, dtype, d_sums, norm, words, weight, input, channels_last, d_weight);
  BNN_FIELDS(LatentBackward, threads, filters, size, peak, steepness, limit, latents, inside, scale, grad);
  BNN_FIELDS(Signs2Float, threads, rows, channels, groups, dtype, words, y);
  return "";
}

}  // namespace bnn
